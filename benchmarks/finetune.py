"""Fine-tuning beside a linear probe, the Hugging Face Trainer and SetFit: the same rows, the same weights.

python benchmarks/finetune.py --data DIR                              SIB-200, trained on English
python benchmarks/finetune.py --data DIR --task all                   trained on 2,000 rows of 21 languages
python benchmarks/finetune.py --data DIR --task shots --seeds 5       8 texts per class
python benchmarks/finetune.py --data DIR --task nusax                 sentiment, trained on English and Indonesian
python benchmarks/finetune.py --data DIR --task xnli                  pairs: entailment, trained on 2,000 English rows
python benchmarks/finetune.py --data DIR --task pawsx                 pairs: paraphrases, trained on 1,500 English rows
python benchmarks/finetune.py --data DIR --speed                      texts/s and peak memory at equal epochs and batch

Each training runs in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from _competitors import machine
from _data import options_parser, read, write_figures
from _reference import training_arguments, write_reference

EPOCHS, PAIR_EPOCHS, BATCH, LEARNING_RATE = 3, 5, 32, 5e-5  # of the Trainer recipe
PAIRS = {"xnli": ("xnli_dev", "premise", "hypothesis", 2000), "pawsx": ("pawsx_dev", "s1", "s2", 1500)}
Fit = Callable[[list, list[str], int, Path], Callable[[list], np.ndarray]]


def probe(X, y, seed, folder):
    """Logistic regression on the frozen vectors; of pairs on u, v, abs(u - v) and u * v."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    from skminilm import MiniLMEncoder

    def compare(pairs):
        first, second = (MiniLMEncoder().transform(list(texts)) for texts in zip(*pairs, strict=True))
        return np.hstack([first, second, np.abs(first - second), first * second])

    vectors = MiniLMEncoder() if isinstance(X[0], str) else FunctionTransformer(compare)
    classifier = LogisticRegression(C=min(100, max(10, 10_000 / len(X))), max_iter=5000)
    return make_pipeline(vectors, classifier).fit(X, y).predict


def ours(**parameters) -> Fit:
    """MiniLMClassifier."""

    def fit(X, y, seed, folder):
        from skminilm import MiniLMClassifier

        return MiniLMClassifier(random_state=seed, **parameters).fit(X, y).predict

    return fit


def trainer(*, bf16: bool = False, frozen_table: bool = False, max_length: int = 128) -> Fit:
    """BertForSequenceClassification with the Trainer, as run_xnli does it: a new head over a new pooler."""

    def fit(X, y, seed, folder):
        import torch
        from transformers import (
            AutoTokenizer,
            BertForSequenceClassification,
            DataCollatorWithPadding,
            Trainer,
            set_seed,
        )

        set_seed(seed)
        classes, codes = np.unique(y, return_inverse=True)
        tokenizer = AutoTokenizer.from_pretrained(folder / "network")
        network = BertForSequenceClassification.from_pretrained(folder / "network", num_labels=len(classes))
        if frozen_table:
            network.bert.embeddings.word_embeddings.weight.requires_grad_(False)

        def columns(rows):
            return (
                [rows] if isinstance(rows[0], str) else [list(column) for column in zip(*rows, strict=True)]
            )

        encoded = tokenizer(*columns(X), truncation=True, max_length=max_length)
        rows = [
            {**{name: values[i] for name, values in encoded.items()}, "label": int(codes[i])}
            for i in range(len(X))
        ]
        with tempfile.TemporaryDirectory() as out:
            arguments = training_arguments(
                out,
                bf16=bf16,
                num_train_epochs=EPOCHS if isinstance(X[0], str) else PAIR_EPOCHS,
                per_device_train_batch_size=BATCH,
                learning_rate=LEARNING_RATE,
                seed=seed,
            )
            collator = DataCollatorWithPadding(tokenizer)
            Trainer(network, arguments, train_dataset=rows, data_collator=collator).train()
        network.eval()

        def predict(texts):
            found = []
            for start in range(0, len(texts), 64):
                batch = tokenizer(
                    *columns(texts[start : start + 64]),
                    truncation=True,
                    max_length=max_length,
                    padding=True,
                    return_tensors="pt",
                )
                with torch.no_grad():
                    found.append(network(**batch.to(network.device)).logits.argmax(1).cpu().numpy())
            return classes[np.concatenate(found)]

        return predict

    return fit


def setfit(X, y, seed, folder):
    """SetFit with its defaults."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(str(folder), device="cpu")
    rows = Dataset.from_dict({"text": list(X), "label": list(y)})
    arguments = TrainingArguments(seed=seed, report_to="none", show_progress_bar=False)
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return lambda texts: np.asarray(model.predict(list(texts)))


MODELS: dict[str, Fit] = {
    "probe": probe,
    "skminilm": ours(),
    "Trainer fp32": trainer(),
    "Trainer bf16, table frozen": trainer(bf16=True, frozen_table=True),
    "SetFit": setfit,
}
REFERENCE = "Trainer fp32"
SPEED: dict[str, Fit] = {
    REFERENCE: trainer(),
    "Trainer bf16, table frozen": trainer(bf16=True, frozen_table=True),
    "skminilm": ours(epochs=EPOCHS, batch_size=BATCH),
    "skminilm fp32": ours(epochs=EPOCHS, batch_size=BATCH, precision="fp32"),
    "skminilm all": ours(epochs=EPOCHS, batch_size=BATCH, trainable="all"),
    "skminilm top 2 layers": ours(epochs=EPOCHS, batch_size=BATCH, trainable=2),
    "skminilm lora": ours(epochs=EPOCHS, batch_size=BATCH, trainable="lora"),
}


def load_task(folder: Path, task: str, split: str) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return rows to train on, rows to score, and the name of the language that stands out."""
    if task == "nusax":
        data = read(folder, "nusax_sentiment")
        train = data[(data.split == "train") & data.lang.isin(["english", "indonesian"])]
        return train, data[data.split == {"dev": "valid", "test": "test"}[split]], "english"
    if task in PAIRS:
        name, first, second, n_train = PAIRS[task]
        data = read(folder, name)
        # The languages have the same rows in the same order; in PAWS-X some lack a few, which moves later rows
        # up. So the rows behind the first n of a language are no translations of the first n English ones.
        data["text"] = list(zip(data[first], data[second], strict=True))
        number = data.groupby("lang").cumcount()
        n_fit = n_train if split == "test" else n_train * 4 // 5
        train = data[(data.lang == "en") & (number < n_fit)]
        return (
            train,
            data[number >= n_fit] if split == "test" else data[number.between(n_fit, n_train - 1)],
            "en",
        )
    data = read(folder, "sib200")
    train = data[data.split == "train"]
    if task != "all":
        train = train[train.lang == "eng_Latn"]
    return train, data[data.split == split], "eng_Latn"


def draw(train: pd.DataFrame, task: str, seed: int) -> pd.DataFrame:
    """Return the rows of one training."""
    if task == "shots":
        return train.groupby("label").sample(8, random_state=seed)
    return train.sample(2000, random_state=0) if task == "all" else train


def peak_mib() -> float:
    """Return the most memory that this process ever held."""
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run_one(job: dict) -> dict:
    """Train one model in this process; return seconds, peak memory and predictions."""
    import warnings

    warnings.simplefilter("ignore")
    models = SPEED if job["speed"] else MODELS
    start = time.perf_counter()
    predict = models[job["model"]](job["X"], job["y"], job["seed"], Path(job["reference"]))
    seconds = time.perf_counter() - start
    peak = peak_mib()
    predicted = [] if job["speed"] else np.asarray(predict(job["X_new"])).tolist()
    return {"seconds": seconds, "peak_mib": peak, "predicted": predicted}


def run_in_process(job: dict, folder: Path, python: str) -> dict:
    """Train in a new process."""
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(json.dumps(job))
    done = subprocess.run(
        [
            python,
            "-W",
            "ignore",
            __file__,
            "--data",
            "-",
            "--job",
            str(job_file),
            "--result",
            str(result_file),
        ],
        capture_output=True,
        text=True,
        cwd=folder,  # SetFit leaves its checkpoints where it runs
    )
    if done.returncode:
        raise SystemExit(f"{job['model']}: {done.stderr[-2000:]}")
    return json.loads(result_file.read_text())


def compare_accuracy(options, names: list[str], folder: Path, reference: Path) -> dict:
    """Print accuracy by language of each model, mean over seeds."""
    train, rows, source = load_task(options.data, options.task, options.split)
    columns, seconds = {}, {}
    for name in names:
        python = options.setfit_python if name == "SetFit" else sys.executable
        runs, times = [], []
        for seed in range(1 if name == "probe" and options.task != "shots" else options.seeds):
            part = draw(train, options.task, seed)
            job = {
                "model": name,
                "speed": False,
                "seed": seed,
                "reference": str(reference.resolve()),
                "X": part.text.tolist(),
                "y": part.label.tolist(),
                "X_new": rows.text.tolist(),
            }
            result = run_in_process(job, folder, python)
            hits = pd.Series(np.array(result["predicted"]) == rows.label.to_numpy())
            runs.append(hits.groupby(rows.lang.to_numpy()).mean())
            times.append(result["seconds"])
            print(
                f"{name}, seed {seed}: mean {runs[-1].mean():.4f}, {source} {runs[-1][source]:.3f}, least "
                f"{runs[-1].idxmin()} {runs[-1].min():.3f}, {times[-1]:.1f} s",
                flush=True,
            )
        columns[name] = pd.concat(runs, axis=1).mean(axis=1)
        seconds[name] = statistics.median(times)
    table = pd.DataFrame(columns)
    table.loc["mean"] = table.mean()
    size = len(draw(train, options.task, 0))
    print(
        f"\n{options.task}, {options.split} split, trained on {size} rows, mean of {options.seeds} seed(s)\n"
        f"{table.round(3).to_string()}\nseconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    )
    return {"table": table.to_dict(), "seconds": seconds}


def compare_speed(options, names: list[str], folder: Path, reference: Path) -> dict:
    """Print texts/s and peak memory, every round running all of them once."""
    train, _, _ = load_task(options.data, "english", "test")
    X, y = train.text.tolist(), train.label.tolist()
    rounds = []
    for _ in range(options.seeds):
        job = {"speed": True, "seed": 0, "reference": str(reference.resolve()), "X": X, "y": y}
        rounds.append(
            {name: run_in_process({**job, "model": name}, folder, sys.executable) for name in names}
        )
    figures = {}
    print(f"{len(X)} texts, {EPOCHS} epochs, batch {BATCH}, {options.seeds} round(s)")
    peers = {"x fp32": REFERENCE, "x bf16": "Trainer bf16, table frozen"}
    peers = {column: peer for column, peer in peers.items() if peer in names}
    print(f"{'':30}{'texts/s':>9}{''.join(f'{column:>8}' for column in peers)}{'peak MiB':>10}{'of fp32':>9}")
    for name in names:
        rate = statistics.median(EPOCHS * len(X) / r[name]["seconds"] for r in rounds)
        ratios = [
            statistics.median(r[peer]["seconds"] / r[name]["seconds"] for r in rounds)
            for peer in peers.values()
        ]
        peak = statistics.median(r[name]["peak_mib"] for r in rounds)
        share = statistics.median(r[name]["peak_mib"] / r[REFERENCE]["peak_mib"] for r in rounds)
        print(
            f"{name:30}{rate:>9.1f}{''.join(f'{ratio:>8.2f}' for ratio in ratios)}{peak:>10,.0f}{share:>9.2f}",
            flush=True,
        )
        figures[name] = {"texts_per_s": rate, "ratios": ratios, "peak_mib": peak, "peak_ratio": share}
    return figures


def main():
    """Print tables."""
    parser = options_parser(__doc__, reference=True)
    parser.add_argument("--task", choices=["english", "all", "shots", "nusax", *PAIRS], default="english")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model; rounds with --speed")
    parser.add_argument("--only", action="append", help="models, by how their names begin")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--setfit-python", default=sys.executable, help="an interpreter that has SetFit")
    parser.add_argument("--job", type=Path, help="internal: run the training that this file describes")
    parser.add_argument("--result", type=Path, help="internal: where to")
    options = parser.parse_args()
    if options.job:
        options.result.write_text(json.dumps(run_one(json.loads(options.job.read_text()))))
        return
    print(machine())
    models = SPEED if options.speed else MODELS
    names = [name for name in models if name.startswith(tuple(options.only or [""]))]
    if options.speed and REFERENCE not in names:
        names.insert(0, REFERENCE)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference = write_reference(options.reference or folder / "reference")
        compare = compare_speed if options.speed else compare_accuracy
        figures = compare(options, names, folder, reference)
    write_figures(options.json, {"machine": machine(), "figures": figures})


if __name__ == "__main__":
    main()
