"""Question answering beside the recipe of transformers' run_qa: the same rows, the same weights.

python benchmarks/question_answering.py --data DIR                     trained on TyDi QA, scored on XQuAD
python benchmarks/question_answering.py --data DIR --only skminilm --dev   scored on contexts of TyDi QA set aside
python benchmarks/question_answering.py --data DIR --only skminilm --hold-out ko   trained on the others, scored on Korean
python benchmarks/question_answering.py --data DIR --rows 2000 --score 100   a part of either

TyDi QA's gold passages: 8,076 questions in English, Swahili and Korean. XQuAD: 1,190 questions in each of 12 languages.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from _competitors import machine
from _data import options_parser, write_figures
from _reference import training_arguments, write_reference

from skminilm import MiniLMQuestionAnswerer
from skminilm.datasets import load_tydiqa_goldp, load_xquad
from skminilm.metrics import mlqa_exact_match, mlqa_f1

EPOCHS, BATCH, LEARNING_RATE, MAX_LENGTH, STRIDE, MAX_ANSWER = 3, 32, 3e-5, 384, 128, 30  # of run_qa
# A step in one part holds matrices of more than 32 MB, which glibc takes from the system and gives back each time: on a
# CPU that takes half of the step.
PARTS = 4


def ours(parameters):
    """MiniLMQuestionAnswerer."""

    def fit(X, y, seed, folder):
        return MiniLMQuestionAnswerer(random_state=seed, **parameters).fit(X, y).predict

    return fit


def run_qa(X, y, seed, folder):
    """BertForQuestionAnswering with the Trainer, bfloat16, table frozen, batches of windows of similar length."""
    import torch
    from transformers import (
        AutoTokenizer,
        BertForQuestionAnswering,
        DataCollatorWithPadding,
        Trainer,
        set_seed,
    )

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "network")
    # Not torch's fused attention, whose backward pass on a CPU takes many times as long.
    attention = {} if torch.cuda.is_available() else {"attn_implementation": "eager"}
    network = BertForQuestionAnswering.from_pretrained(folder / "network", **attention)
    network.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    with tempfile.TemporaryDirectory() as out:
        arguments = training_arguments(
            out,
            bf16=True,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH // PARTS,
            gradient_accumulation_steps=PARTS,
            learning_rate=LEARNING_RATE,
            train_sampling_strategy="group_by_length",
            seed=seed,
        )
        rows = training_windows(windows(tokenizer, X), y)
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(network, arguments, train_dataset=rows, data_collator=collator).train()
    network.eval()
    return lambda pairs: answers(network, tokenizer, pairs)


def windows(tokenizer, pairs):
    """Return the windows of all questions and contexts as transformers' tokenizer gives them."""
    questions, contexts = (list(column) for column in zip(*pairs, strict=True))
    return tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def training_windows(encoded, y):
    """Return windows with the first and the last token of the answer, or 0 and 0 where it is not all there."""
    rows = []
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        text, start = y[row]
        offsets, owners = encoded["offset_mapping"][window], encoded.sequence_ids(window)
        inside = [i for i, owner in enumerate(owners) if owner == 1]
        first = [i for i in inside if offsets[i][0] <= start < offsets[i][1]]
        last = [i for i in inside if offsets[i][0] < start + len(text) <= offsets[i][1]]
        span = (first[0], last[-1]) if first and last else (0, 0)
        ids = encoded["input_ids"][window]
        rows.append({"input_ids": ids, "start_positions": span[0], "end_positions": span[1]})
    return rows


def answers(network, tokenizer, pairs):
    """Return the best answer over the windows of each question."""
    import torch

    encoded = windows(tokenizer, pairs)
    best = dict.fromkeys(range(len(pairs)), (-np.inf, ""))
    order = np.argsort([len(ids) for ids in encoded["input_ids"]])
    for begin in range(0, len(order), 32):
        some = order[begin : begin + 32]
        batch = tokenizer.pad([{"input_ids": encoded["input_ids"][i]} for i in some], return_tensors="pt")
        with torch.no_grad(), torch.autocast(network.device.type, torch.bfloat16):
            outputs = network(**batch.to(network.device))
        starts, ends = (x.float().cpu().numpy() for x in (outputs.start_logits, outputs.end_logits))
        for window, start, end in zip(some, starts, ends, strict=True):
            score, first, last = best_span(start, end, encoded.sequence_ids(window))
            row, offsets = encoded["overflow_to_sample_mapping"][window], encoded["offset_mapping"][window]
            answer = pairs[row][1][offsets[first][0] : offsets[last][1]]
            best[row] = max(best[row], (score, answer), key=lambda pair: pair[0])
    return [answer for _, answer in best.values()]


def best_span(start, end, owners):
    """Return the score of the best span inside the context, and its first and last token."""
    outside = np.array([owner != 1 for owner in owners])
    start, end = (np.where(outside, -np.inf, logits[: len(outside)]) for logits in (start, end))
    scores = start[:, None] + end[None, :]
    distance = np.arange(len(end))[None, :] - np.arange(len(start))[:, None]
    scores[(distance < 0) | (distance >= MAX_ANSWER)] = -np.inf
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), first, last


def set_aside(data, language: str | None = None, share: int = 10):
    """Divide rows: masks of those to train on and of a language, or of a share whose contexts are in no other row."""
    if language:
        return data.languages != language, data.languages == language
    contexts = np.array([context for _, context in data.data])
    chosen = np.random.RandomState(0).permutation(np.unique(contexts))
    held_out = np.isin(contexts, chosen[: len(chosen) // share])
    return ~held_out, held_out


def main():
    """Print F1 and exact match by language."""
    parser = options_parser(__doc__, reference=True)
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--dev", action="store_true", help="score a tenth of TyDi QA that is not trained on")
    held.add_argument("--hold-out", help="score a language of TyDi QA, trained on the others")
    parser.add_argument("--rows", type=int, help="train on so many, drawn at random")
    parser.add_argument("--score", type=int, help="score the first so many questions of each language")
    parser.add_argument("--params", action="append", help="parameters of ours, JSON; may be repeated")
    parser.add_argument("--only", action="append", help="models, by how their names begin")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    X, y, test = rows_of(options)
    models = {"run_qa": run_qa}
    for text in options.params or ["{}"]:
        models["skminilm" + (f" {text}" if options.params else "")] = ours(json.loads(text))
    models = {name: fit for name, fit in models.items() if name.startswith(tuple(options.only or [""]))}
    print(machine())
    print(f"trained on {len(X):,} questions, scored on {len(test):,}")
    columns, seconds = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.reference or Path(temporary) / "reference"
        reference = write_reference(folder) if "run_qa" in models else folder
        for name, fit in models.items():
            begin = time.perf_counter()
            predict = fit(X, y, options.seed, reference)
            trained = time.perf_counter()
            found = predict(list(test.pair))
            seconds[name] = {"fit": trained - begin, "predict": time.perf_counter() - trained}
            scores = scores_by_language(test.assign(found=found))
            for metric in scores:
                columns[f"{name}, {metric}"] = scores[metric]
            f1, exact = scores.mean()
            print(
                f"{name}: F1 {f1:.4f}, exact match {exact:.4f}, fit {seconds[name]['fit']:.0f} s, "
                f"predict {seconds[name]['predict']:.0f} s",
                flush=True,
            )
    table = pd.DataFrame(columns)
    table.loc["mean"] = table.mean()
    print((100 * table).round(1).to_string())
    write_figures(options.json, {"machine": machine(), "table": table.to_dict(), "seconds": seconds})


def rows_of(options):
    """Return X and y to train on, and a frame of what is scored: pair, answers, language."""
    data = load_tydiqa_goldp(options.data)
    train, scored = np.ones(len(data.data), bool), load_xquad(options.data)
    held_out = np.ones(len(scored.data), bool)
    if options.dev or options.hold_out:
        scored = data
        train, held_out = set_aside(data, options.hold_out)
    rows = np.flatnonzero(train)
    if options.rows:
        rows = np.sort(np.random.RandomState(1).choice(rows, options.rows, replace=False))
    X, y = [tuple(data.data[row]) for row in rows], [data.target[row] for row in rows]
    pairs = [tuple(pair) for pair in scored.data]
    test = pd.DataFrame({"pair": pairs, "answers": list(scored.answers), "language": scored.languages})
    test = test[held_out]
    return X, y, test.groupby("language", sort=False).head(options.score or len(test))


def scores_by_language(test):
    """Return a frame of F1 and exact match, a row for each language, in the order in which they come."""
    metrics = {"F1": mlqa_f1, "exact": mlqa_exact_match}
    return pd.DataFrame(
        {
            language: {
                name: score(rows.answers.tolist(), rows.found.tolist(), language)
                for name, score in metrics.items()
            }
            for language, rows in test.groupby("language", sort=False)
        }
    ).T


if __name__ == "__main__":
    main()
