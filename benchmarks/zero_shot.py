"""Classification by labels in words: SIB-200's topics and NusaX's sentiments, without a labelled text.

python benchmarks/zero_shot.py --data DIR                    dev splits, several templates
python benchmarks/zero_shot.py --data DIR --split test       the default template
python benchmarks/zero_shot.py --data DIR --nli OUT/model    also by a classifier that `skminilm xnli` wrote
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _data import options_parser, read, write_figures

from skminilm import MiniLMClassifier, MiniLMZeroShotClassifier

TEMPLATES = ["{}", "This text is about {}.", "The topic is {}.", "This text is {}.", "The sentiment is {}."]
TASKS = {"sib200": {"dev": "dev", "test": "test"}, "nusax_sentiment": {"dev": "valid", "test": "test"}}


def main():
    """Print the mean accuracy over languages of each way."""
    parser = options_parser(__doc__)
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--nli", help="folder of a MiniLMClassifier fitted on premises and hypotheses")
    parser.add_argument("--rows", type=int, help="score so many texts of each language, drawn at random")
    options = parser.parse_args()
    default = MiniLMZeroShotClassifier().hypothesis_template
    figures = {}
    for task, splits in TASKS.items():
        data = read(options.data, task)
        rows = data[data.split == splits[options.split]]
        if options.rows:
            rows = rows.groupby("lang").sample(options.rows, random_state=0)
        texts = data.text[data.split == "train"].sample(700, random_state=0).tolist()
        labels = sorted(set(data.label))
        for template in TEMPLATES if options.split == "dev" else [default]:
            models = {"similarity": {}, "similarity, centred": {"center": True}}
            if options.nli and template != "{}":
                models["entailment"] = {"nli": MiniLMClassifier.load(options.nli)}
            for name, parameters in models.items():
                model = MiniLMZeroShotClassifier(labels=labels, hypothesis_template=template, **parameters)
                hits = pd.Series(model.fit(texts).predict(rows.text) == rows.label.to_numpy())
                by_language = hits.groupby(rows.lang.to_numpy()).mean()
                figures[f"{task}, {template}, {name}"] = by_language.to_dict()
                print(
                    f"{task:16} {template:24} {name:20} {by_language.mean():.3f}, least {by_language.idxmin()} "
                    f"{by_language.min():.3f}",
                    flush=True,
                )
    write_figures(options.json, figures)
    assert np.isfinite([value for scores in figures.values() for value in scores.values()]).all()


if __name__ == "__main__":
    main()
