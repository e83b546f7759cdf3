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

    def windows(pairs):
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

    encoded = windows(X)
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
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(network, arguments, train_dataset=rows, data_collator=collator).train()
    network.eval()

    def predict(pairs):
        encoded = windows(pairs)
        best = dict.fromkeys(range(len(pairs)), (-np.inf, ""))
        order = np.argsort([len(ids) for ids in encoded["input_ids"]])
        for begin in range(0, len(order), 32):
            some = order[begin : begin + 32]
            batch = tokenizer.pad(
                [{"input_ids": encoded["input_ids"][i]} for i in some], return_tensors="pt"
            ).to(network.device)
            with torch.no_grad(), torch.autocast(network.device.type, torch.bfloat16):
                outputs = network(**batch)
            for k, window in enumerate(some):
                inside = np.array([owner == 1 for owner in encoded.sequence_ids(window)])
                start = np.where(
                    inside, outputs.start_logits[k, : len(inside)].float().cpu().numpy(), -np.inf
                )
                end = np.where(inside, outputs.end_logits[k, : len(inside)].float().cpu().numpy(), -np.inf)
                scores = start[:, None] + end[None, :]
                distance = np.arange(len(end))[None, :] - np.arange(len(start))[:, None]
                scores[(distance < 0) | (distance >= MAX_ANSWER)] = -np.inf
                first, last = np.unravel_index(scores.argmax(), scores.shape)
                row = encoded["overflow_to_sample_mapping"][window]
                offsets = encoded["offset_mapping"][window]
                answer = pairs[row][1][offsets[first][0] : offsets[last][1]]
                best[row] = max(best[row], (float(scores[first, last]), answer), key=lambda pair: pair[0])
        return [answer for _, answer in best.values()]

    return predict


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
    data = load_tydiqa_goldp(options.data)
    train, test = np.ones(len(data.data), bool), load_xquad(options.data)
    if options.dev or options.hold_out:
        train, held_out = set_aside(data, options.hold_out)
        test = type(data)(**{k: v[held_out] if isinstance(v, np.ndarray) else v for k, v in data.items()})
    rows = np.flatnonzero(train)
    if options.rows:
        rows = np.sort(np.random.RandomState(1).choice(rows, options.rows, replace=False))
    X, y = [tuple(data.data[row]) for row in rows], [data.target[row] for row in rows]
    number = pd.Series(test.languages).groupby(test.languages).cumcount().to_numpy()
    scored = np.flatnonzero(number < (options.score or len(number)))
    languages = test.languages[scored]
    models = {"run_qa": run_qa}
    for text in options.params or ["{}"]:
        models["skminilm" + (f" {text}" if options.params else "")] = ours(json.loads(text))
    models = {name: fit for name, fit in models.items() if name.startswith(tuple(options.only or [""]))}
    print(machine())
    print(f"trained on {len(X):,} questions, scored on {len(scored):,}")
    columns, seconds = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.reference or Path(temporary) / "reference"
        reference = write_reference(folder) if "run_qa" in models else folder
        for name, fit in models.items():
            begin = time.perf_counter()
            predict = fit(X, y, options.seed, reference)
            trained = time.perf_counter()
            found = np.array(predict([tuple(test.data[row]) for row in scored]), dtype=object)
            seconds[name] = {"fit": trained - begin, "predict": time.perf_counter() - trained}
            for metric, score in (("F1", mlqa_f1), ("exact", mlqa_exact_match)):
                columns[f"{name}, {metric}"] = {
                    language: score(
                        [test.answers[row] for row in scored[languages == language]],
                        found[languages == language],
                        language,
                    )
                    for language in dict.fromkeys(languages.tolist())
                }
            means = {
                metric: np.mean(list(columns[f"{name}, {metric}"].values())) for metric in ("F1", "exact")
            }
            print(
                f"{name}: F1 {means['F1']:.4f}, exact match {means['exact']:.4f}, fit {seconds[name]['fit']:.0f} s, "
                f"predict {seconds[name]['predict']:.0f} s",
                flush=True,
            )
    table = pd.DataFrame(columns)
    table.loc["mean"] = table.mean()
    print((100 * table).round(1).to_string())
    write_figures(options.json, {"machine": machine(), "table": table.to_dict(), "seconds": seconds})


if __name__ == "__main__":
    main()
