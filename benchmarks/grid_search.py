"""A grid search over a text pipeline: ours, which encodes each text once, beside encoders that do not remember.

python benchmarks/grid_search.py --data DIR
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from _competitors import machine, skrub_text_encoder
from _data import options_parser, read, write_figures
from _reference import write_reference
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from skminilm import MiniLMEncoder, clear_cache
from skminilm.engine.packed_model import PackedModel

VALUES_OF_C = np.logspace(-2, 2, 10)


def search(encoder, X, y, folds: int, solver: str):
    """Run the search; return it and its seconds."""
    pipeline = make_pipeline(encoder, LogisticRegression(solver=solver, max_iter=1000))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    grid = GridSearchCV(pipeline, {"logisticregression__C": VALUES_OF_C}, cv=splits)
    start = time.perf_counter()
    grid.fit(X, y)
    return grid, time.perf_counter() - start


def count_encoded(run) -> tuple[object, int]:
    """Return what `run` returns, and how many texts went through the network meanwhile."""
    original, counted = PackedModel.encode, []

    def counting(self, texts, *args, **options):
        counted.append(len(texts))
        return original(self, texts, *args, **options)

    PackedModel.encode = counting
    try:
        return run(), sum(counted)
    finally:
        PackedModel.encode = original


def peers(folder: Path) -> dict:
    """Return the encoders of other packages; a line says what is not installed."""
    found = {}
    try:
        encoder = skrub_text_encoder()
        found[f"skrub {encoder.__name__}"] = encoder(str(folder), n_components=None, device="cpu")
    except ImportError:
        print("skrub: left out, not installed")
    try:
        from embetter.text import SentenceEncoder

        found["embetter SentenceEncoder"] = SentenceEncoder(str(folder), device="cpu")
    except ImportError:
        print("embetter SentenceEncoder: left out, embetter not installed")
    return found


def main():
    """Print seconds and ratios."""
    parser = options_parser(__doc__, reference=True)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of our search, each from an empty cache")
    parser.add_argument("--solver", default="lbfgs", help="of the logistic regression, in all searches")
    parser.add_argument("--only-ours", action="store_true")
    options = parser.parse_args()
    import pandas as pd

    data = read(options.data, "sib200")
    rows = data[data.split == "train"].drop_duplicates("text").sample(options.texts, random_state=0)
    X, y = pd.Series(rows.text.tolist(), name="text"), rows.label.to_numpy()
    print(machine())
    print(f"{options.texts} texts, {options.folds} shuffled folds x {len(VALUES_OF_C)} values of C")
    MiniLMEncoder(prompt=None, cache=None).transform(["load the model"])
    ours = []
    for _ in range(options.rounds):
        clear_cache()
        (grid, seconds), encoded = count_encoded(
            lambda: search(MiniLMEncoder(prompt=None), X.tolist(), y, options.folds, options.solver)
        )
        ours.append(seconds)
        print(
            f"{'skminilm':28}{seconds:>10.2f} s  score {grid.best_score_:.3f}; {encoded} texts encoded",
            flush=True,
        )
    figures = {"machine": machine(), "skminilm": ours, "encoded": encoded}
    if not options.only_ours:
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_reference(options.reference or Path(temporary))
            for name, encoder in peers(folder).items():
                texts = X if name.startswith("skrub") else X.tolist()
                grid, seconds = search(encoder, texts, y, options.folds, options.solver)
                ratio = seconds / float(np.median(ours))
                print(
                    f"{name:28}{seconds:>10.2f} s  score {grid.best_score_:.3f}; {ratio:,.0f} times ours",
                    flush=True,
                )
                figures[name] = {"seconds": seconds, "ratio": ratio}
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
