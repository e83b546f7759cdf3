"""Accuracy by language of the probe and of MiniLMClassifier, trained on one or two languages.

python benchmarks/accuracy.py --data DIR                                  the defaults, SIB-200 test
python benchmarks/accuracy.py --data DIR --split dev --params '{"epochs": 5}' --params '{"epochs": 3}'
"""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
from _data import options_parser, read, write_figures
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skminilm import MiniLMClassifier, MiniLMEncoder

TASKS = {
    "sib200": ("sib200", ["eng_Latn"], {"dev": "dev", "test": "test"}),
    "nusax": ("nusax_sentiment", ["english", "indonesian"], {"dev": "valid", "test": "test"}),
}


def draw(train: pd.DataFrame, shots: int | None, seed: int) -> pd.DataFrame:
    """Take a few rows of each class, or all."""
    if shots is None:
        return train
    return train.groupby("label").sample(shots, random_state=seed)


def main():
    """Print accuracy by language, mean over seeds."""
    parser = options_parser(__doc__)
    parser.add_argument("--task", choices=TASKS, default="sib200")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--params", action="append", default=[], help="parameters of the classifier, JSON")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=int, help="train on so many rows per class, drawn by seed")
    parser.add_argument("--no-probe", action="store_true", help="leave the linear probe out")
    parser.add_argument("--brief", action="store_true", help="one line a model")
    options = parser.parse_args()
    name, sources, splits = TASKS[options.task]
    data = read(options.data, name)
    train = data[data.lang.isin(sources) & (data.split == "train")]
    rows = data[data.split == splits[options.split]]

    models = {}
    if not options.no_probe:
        models["probe"] = lambda seed: make_pipeline(MiniLMEncoder(), LogisticRegression(C=10, max_iter=5000))
    for text in options.params or ["{}"]:
        parameters = json.loads(text)
        models[f"classifier {text}"] = lambda seed, p=parameters: MiniLMClassifier(random_state=seed, **p)

    columns, seconds = {}, {}
    for label, make in models.items():
        runs = []
        began = time.perf_counter()
        for seed in range(options.seeds):
            part = draw(train, options.shots, seed)
            model = make(seed).fit(part.text.tolist(), part.label.tolist())
            seconds[label] = (time.perf_counter() - began) / (seed + 1)
            hits = pd.Series(model.predict(rows.text) == rows.label.to_numpy())
            runs.append(hits.groupby(rows.lang.to_numpy()).mean())
        columns[label] = pd.concat(runs, axis=1).mean(axis=1)
        scores = columns[label]
        if options.brief:
            print(
                f"{options.task} {options.split}  mean {scores.mean():.4f}  "
                f"{sources[0]} {scores[sources[0]]:.3f}  worst {scores.idxmin()} {scores.min():.3f}  "
                f"{seconds[label]:.0f} s  {label}",
                flush=True,
            )
    table = pd.DataFrame(columns)
    table.loc["mean"] = table.mean()
    if not options.brief:
        print(f"{options.task}, {options.split} split, trained on {len(draw(train, options.shots, 0))} rows of "
              f"{' + '.join(sources)}, mean of {options.seeds} seed(s)")  # fmt: skip
        print(table.round(3).to_string())
        print("seconds to fit: " + ", ".join(f"{label} {value:.0f}" for label, value in seconds.items()))
    write_figures(options.json, {"table": table.to_dict(), "seconds": seconds})
    assert np.isfinite(table.to_numpy()).all()


if __name__ == "__main__":
    main()
