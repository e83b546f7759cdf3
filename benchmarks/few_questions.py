"""A few questions of a language beside many of others: alone, all together, or one after the other (warm_start).

python benchmarks/few_questions.py --data DIR

TyDi QA's gold passages. Trained on 1,500 questions in English and Swahili and on some Korean ones, scored on Korean
questions about other contexts.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
from _competitors import machine
from _data import options_parser, write_figures

from skminilm import MiniLMQuestionAnswerer
from skminilm.datasets import load_tydiqa_goldp

LANGUAGE, N_SCORED = "ko", 400


def main():
    """Print F1 of each way, by the number of Korean questions."""
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1500, help="questions in the other languages")
    parser.add_argument("--few", type=int, nargs="+", default=[50, 150, 500], help="Korean questions")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], help="of the Korean questions and fits"
    )
    options = parser.parse_args()
    print(machine())
    data = load_tydiqa_goldp(options.data)
    X, y = data.data, np.fromiter(data.target, dtype=object, count=len(data.target))
    others = np.random.RandomState(1).choice(
        np.flatnonzero(data.languages != LANGUAGE), options.rows, replace=False
    )
    few, scored = divide(X, np.flatnonzero(data.languages == LANGUAGE))
    first = MiniLMQuestionAnswerer(random_state=0).fit(X[others], y[others])
    figures = [
        {
            "way": "others",
            "questions": 0,
            "seed": 0,
            "F1": first.score(X[scored], y[scored], languages=LANGUAGE),
        }
    ]
    print(figures[-1], flush=True)
    for seed in options.seeds:
        order = np.random.RandomState(seed).permutation(few)
        for n in options.few:
            rows = order[:n]
            for way, answerer in ways(first, X, y, others, rows, seed):
                score = answerer.score(X[scored], y[scored], languages=LANGUAGE)
                figures.append({"way": way, "questions": n, "seed": seed, "F1": score})
                print(figures[-1], flush=True)
    table = pd.DataFrame(figures).pivot_table("F1", ["questions"], ["way", "seed"])
    print((100 * table).round(1).to_string())
    write_figures(options.json, {"machine": machine(), "figures": figures})


def divide(X, rows):
    """Return rows to train on and rows that are scored, whose contexts are in no other row."""
    contexts = X[rows, 1]
    chosen = np.random.RandomState(0).permutation(np.unique(contexts))
    is_scored = np.isin(contexts, chosen[: len(chosen) // 3])
    return rows[~is_scored], rows[is_scored][:N_SCORED]


def ways(first, X, y, others, rows, seed):
    """Yield names and fitted answerers."""
    yield "alone", MiniLMQuestionAnswerer(random_state=seed).fit(X[rows], y[rows])
    yield "then", copy.deepcopy(first).set_params(warm_start=True, random_state=seed).fit(X[rows], y[rows])
    together = np.concatenate([others, rows])
    yield "together", MiniLMQuestionAnswerer(random_state=seed).fit(X[together], y[together])


if __name__ == "__main__":
    main()
