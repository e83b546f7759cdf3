"""``skminilm mlqa``: train on one file of questions, score MLQA or XQuAD in every language once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from .._answers import check_questions
from .._question_answerer import MiniLMQuestionAnswerer
from .._windows import cut_windows
from ..datasets import load_mlqa, load_squad, load_xquad
from ..datasets._files import find_file
from ..datasets._hub import is_hub_dataset
from ..metrics._by_language import rows_by_language
from ._evaluation import (
    check_model,
    check_test,
    describe,
    finish,
    first_of_each_language,
    fit_and_save,
    means_of,
    table_of,
    warmup_ratio,
)
from ._output import check_output_dir
from ._published import MLQA_AVERAGE, MLQA_F1

TRAINING_FILES = [
    "train-v1.1.json",
    "train-v2.0.json",
    "tydiqa-goldp-v1.1-train.json",
    "tydiqa_goldp.jsonl.gz",
]
_TITLES = {"mlqa": "MLQA", "xquad": "XQuAD"}


def run_mlqa(
    data_dir: Path,
    model: str,
    output_dir: Path,
    *,
    train_file: Path | None,
    train_languages: list[str] | None,
    test_set: str,
    max_rows: int | None,
    on_missing_answer: str,
    warmup_steps: int | None,
    parameters: dict[str, Any],
) -> None:
    """Run the evaluation; see the command for the options."""
    check_output_dir(output_dir, "mlqa")
    answerer = MiniLMQuestionAnswerer(model, **parameters)
    checkpoint = check_model(answerer)
    answerer._settings(checkpoint)
    if train_file is None and is_hub_dataset(data_dir):
        raise ValueError(
            f"{data_dir} is a data set of the Hugging Face hub, without a file to train on: give one with "
            "--train-file, such as rajpurkar/squad."
        )
    test, name = _read_test(data_dir, test_set)
    train_file = train_file or find_file(data_dir, TRAINING_FILES)
    training = load_squad(train_file, languages=train_languages)
    training, test = (first_of_each_language(part, max_rows) for part in (training, test))
    check_test(test, check_questions)
    texts = check_questions(training.data)
    windows = cut_windows(checkpoint.tokenizer, texts, parameters["max_length"], parameters["stride"])
    n_windows = len(windows.batch.lengths)  # what steps are made of
    del windows
    ratio = warmup_ratio(warmup_steps, n_windows, parameters["batch_size"], parameters["epochs"])
    answerer.set_params(warmup_ratio=ratio)
    fitted = fit_and_save(
        output_dir, "mlqa", answerer, training.data, training.target, on_missing_answer=on_missing_answer
    )
    scores = rows_by_language(answerer, test.data, test.answers, test.languages)
    published, published_mean = (MLQA_F1, MLQA_AVERAGE) if name == "mlqa" else ({}, None)
    part = "" if max_rows is None else f" (first {max_rows:,} a language)"
    title = (
        f"{_TITLES[name]} test{part}: in %, trained on {train_file.name}, {len(training.data):,} questions"
    )
    caption = "published: F1 on MLQA test, Multilingual-MiniLM-L12-H384 trained on the English SQuAD 1.1"
    metrics = {"f1": "F1", "exact_match": "exact match"}
    means = means_of(scores, metrics)
    results = {
        "options": {
            "test_set": name,
            "train_languages": train_languages,
            "max_rows": max_rows,
            "on_missing_answer": on_missing_answer,
        },
        "data": {"train": describe(training), "test": describe(test)},
        "fit": fitted,
        "scores": scores,
        "mean": means,
        "published": {"f1": published, "mean": published_mean, "unit": "percent"} if published else None,
    }
    table = table_of(
        scores,
        means,
        metrics,
        published,
        published_mean,
        title,
        caption if published else "nothing is published for XQuAD",
    )
    finish(output_dir, "mlqa", answerer, results, table)


def _read_test(data_dir: Path, test_set: str) -> tuple[Bunch, str]:
    """Return MLQA or XQuAD; for ``"auto"`` the first that is there."""
    missing = []
    for name, load in (("mlqa", load_mlqa), ("xquad", load_xquad)):
        if test_set in ("auto", name):
            try:
                return load(data_dir), name
            except FileNotFoundError as error:
                missing.append(str(error))
    raise FileNotFoundError("\n".join(missing))
