"""Which prompt serves best: linear probes and retrieval on development splits only.

python benchmarks/prompts.py --data DIR
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _data import options_parser, read, write_figures
from sklearn.linear_model import LogisticRegression

from skminilm import MiniLMEncoder

PROMPTS = ["", "query: ", "passage: ", "text: ", "sentence: ", "document: ", "title: "]
PENALTIES = (1, 10)


def accuracy_by_language(train_vectors, train_labels, vectors, rows, penalty):
    """Accuracy of a logistic regression, by language."""
    probe = LogisticRegression(C=penalty, max_iter=5000).fit(train_vectors, train_labels)
    hits = pd.Series(probe.predict(vectors) == rows.label.to_numpy())
    return hits.groupby(rows.lang.to_numpy()).mean()


def probe(encode, data, train_split, dev_split, sources):
    """Mean over source languages of the mean over all languages, for each penalty."""
    rows = data[data.split == dev_split]
    vectors = encode(rows.text)
    result = {}
    by_language = []
    for source in sources:
        train = data[(data.split == train_split) & (data.lang == source)]
        train_vectors = encode(train.text)
        for penalty in PENALTIES:
            scores = accuracy_by_language(train_vectors, train.label, vectors, rows, penalty)
            result.setdefault(penalty, []).append(scores.mean())
            by_language.append(scores)
    worst = pd.concat(by_language, axis=1).mean(axis=1)
    return {f"C={p}": float(np.mean(s)) for p, s in result.items()}, (worst.idxmin(), float(worst.min()))


def pair_probe(encode, data):
    """PAWS-X: a probe on [u, v, |u - v|, u v], English rows to 1,500 against later rows of all."""
    data = data.assign(row=data.groupby("lang").cumcount())
    train, rows = data[(data.lang == "en") & (data.row < 1500)], data[data.row >= 1500]

    def features(part):
        u, v = encode(part.s1), encode(part.s2)
        return np.hstack([u, v, abs(u - v), u * v])

    train_features, vectors = features(train), features(rows)
    return {
        f"C={p}": float(accuracy_by_language(train_features, train.label, vectors, rows, p).mean())
        for p in PENALTIES
    }


def retrieval(encode, data):
    """SIB-200 development split: share of sentences whose nearest English one is their translation."""
    rows = data[data.split == "dev"]
    english = encode(rows[rows.lang == "eng_Latn"].text)
    scores = []
    for lang, part in rows.groupby("lang"):
        if lang != "eng_Latn":
            nearest = (encode(part.text) @ english.T).argmax(axis=1)
            scores.append((nearest == np.arange(len(part))).mean())
    return float(np.mean(scores))


def main():
    """Print one line a prompt."""
    parser = options_parser(__doc__)
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    sib, nusax, pawsx = (read(options.data, name) for name in ("sib200", "nusax_sentiment", "pawsx_dev"))
    results = {}
    header = (
        f"{'prompt':<14}{'SIB C=1':>9}{'C=10':>7}{'NusaX C=1':>11}{'C=10':>7}{'PAWS-X C=1':>12}{'C=10':>7}"
    )
    print(f"{header}{'retrieval':>11}{'mean':>7}   worst SIB language")
    for prompt in PROMPTS:
        encoder = MiniLMEncoder(options.model, prompt=prompt)

        def encode(texts, encoder=encoder):
            return encoder.transform(list(texts))

        sources = ["eng_Latn", "deu_Latn", "arb_Arab", "zho_Hans", "swh_Latn"]
        topics, worst = probe(encode, sib, "train", "dev", sources)
        sentiment, _ = probe(encode, nusax, "train", "valid", ["english", "indonesian", "javanese"])
        pairs = pair_probe(encode, pawsx)
        found = retrieval(encode, sib)
        tasks = [np.mean(list(scores.values())) for scores in (topics, sentiment, pairs)]
        mean = float(np.mean(tasks))
        results[prompt] = {
            "sib200": topics, "nusax": sentiment, "pawsx": pairs, "retrieval": found, "mean": mean, "worst": worst,
        }  # fmt: skip
        cells = [*topics.values(), *sentiment.values(), *pairs.values(), found, mean]
        widths = (9, 7, 11, 7, 12, 7, 11, 7)
        line = "".join(f"{cell:>{width}.3f}" for cell, width in zip(cells, widths, strict=True))
        print(f"{prompt!r:<14}{line}   {worst[0]} {worst[1]:.3f}", flush=True)
    write_figures(options.json, results)


if __name__ == "__main__":
    main()
