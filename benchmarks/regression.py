"""R² of ridge regressions on vectors and of MiniLMRegressor, trained on a few or many English texts.

python benchmarks/regression.py --data DIR                                the defaults, test splits
python benchmarks/regression.py --data DIR --split dev --params '{"learning_rate": 3e-5}'

Tasks: sentiment of NusaX as a number (1, 3, 5), and how many characters a sentence of SIB-200 has (its logarithm).
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from _data import options_parser, read, write_figures
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline

from skminilm import MiniLMEncoder, MiniLMRegressor

SENTIMENT = {"negative": 1, "neutral": 3, "positive": 5}


def sentiment(data: pd.DataFrame) -> np.ndarray:
    """Return 1, 3 or 5."""
    return data.label.map(SENTIMENT).to_numpy(float)


def log_length(data: pd.DataFrame) -> np.ndarray:
    """Return the logarithm of how many characters each text has."""
    return np.log(data.text.str.len().to_numpy())


TASKS = {
    "sentiment": ("nusax_sentiment", "english", {"dev": "valid", "test": "test"}, sentiment),
    "length": ("sib200", "eng_Latn", {"dev": "dev", "test": "test"}, log_length),
}


def main():
    """Print one row per task and number of texts, one column per model."""
    parser = options_parser(__doc__)
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--rows", type=int, action="append", help="texts to train on (default: 40 and 200)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the texts")
    parser.add_argument("--params", action="append", default=[], help="parameters of the regressor, JSON")
    options = parser.parse_args()
    models = {
        "Ridge()": lambda seed: make_pipeline(MiniLMEncoder(), Ridge()),
        "RidgeCV(logspace)": lambda seed: make_pipeline(MiniLMEncoder(), RidgeCV(np.logspace(-3, 2, 11))),
    }
    for text in options.params or ['{"trainable": "head"}', '{"trainable": 2}', "{}"]:
        parameters = json.loads(text)
        models[f"regressor {text}"] = lambda seed, p=parameters: MiniLMRegressor(random_state=seed, **p)

    rows = {}
    for task, (name, language, splits, number) in TASKS.items():
        data = read(options.data, name)
        data = data[data.lang == language]
        train, test = data[data.split == "train"], data[data.split == splits[options.split]]
        for n_rows in options.rows or [40, 200]:
            found = []
            for seed in range(options.seeds):
                part = train.sample(n_rows, random_state=seed)
                found.append(
                    {
                        label: make(seed)
                        .fit(part.text.tolist(), number(part))
                        .score(test.text.tolist(), number(test))
                        for label, make in models.items()
                    }
                )
            rows[f"{task}, {n_rows} texts"] = pd.DataFrame(found).mean()
            print(
                f"{task}, {n_rows} texts: " + str(rows[f"{task}, {n_rows} texts"].round(3).to_dict()),
                flush=True,
            )
    table = pd.DataFrame(rows).T
    print(f"R² on the {options.split} splits, mean of {options.seeds} draws of the texts")
    print(table.round(3).to_string())
    write_figures(options.json, table.to_dict())
    assert np.isfinite(table.to_numpy()).all()


if __name__ == "__main__":
    main()
