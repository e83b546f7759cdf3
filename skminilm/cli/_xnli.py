"""``skminilm xnli``: train on one language, select on dev, score test in every language once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._classifier import MiniLMClassifier
from .._validation import Texts, check_texts
from ..checkpoints import tokenize
from ..datasets import load_xnli
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
    take,
    warmup_ratio,
)
from ._output import check_output_dir
from ._published import XNLI_ACCURACY, XNLI_AVERAGE

_CAPTION = (
    "published: XNLI test, Multilingual-MiniLM-L12-H384 trained on the 392,702 pairs of the English MultiNLI"
)


def run_xnli(
    data_dir: Path,
    model: str,
    train_language: str,
    output_dir: Path,
    *,
    from_dev: bool,
    train_rows: int | None,
    test_rows: int | None,
    max_rows: int | None,
    warmup_steps: int | None,
    parameters: dict[str, Any],
) -> None:
    """Run the evaluation; see the command for the options."""
    check_output_dir(output_dir, "xnli")
    classifier = MiniLMClassifier(model, **parameters)
    checkpoint, pair = check_model(classifier), Texts(["premise"], ["hypothesis"])
    tokenize(checkpoint.tokenizer, pair.first, pair.second, classifier._settings(checkpoint, pair, len(pair)))
    if from_dev:
        train_rows = 2000 if train_rows is None else train_rows
        test_rows = 490 if test_rows is None else test_rows
        training, dev, test = split_dev(
            load_xnli(data_dir, split="dev"), train_language, train_rows, test_rows
        )
    elif train_rows is not None or test_rows is not None:
        raise ValueError("--train-rows and --test-rows divide XNLI dev: give them with --from-dev alone.")
    else:
        training, dev, test = _read_splits(data_dir, train_language)
    training, dev, test = (
        part if part is None else first_of_each_language(part, max_rows) for part in (training, dev, test)
    )
    check_test(test, check_texts)
    epochs = parameters["epochs"]
    ratio = warmup_ratio(warmup_steps, len(training.data), parameters["batch_size"], epochs)
    selection = {} if dev is None else {"early_stopping": True, "n_iter_no_change": epochs}
    classifier.set_params(warmup_ratio=ratio, **selection)
    validation = {} if dev is None else {"X_val": dev.data, "y_val": dev.target}
    fitted = fit_and_save(output_dir, "xnli", classifier, training.data, training.target, **validation)
    scores = rows_by_language(classifier, test.data, test.target, test.languages)
    what = f"the last {test_rows:,} pairs of XNLI dev" if from_dev else "XNLI test"
    if max_rows is not None:
        what += f" (first {max_rows:,} a language)"
    title = f"{what}: accuracy in %, trained on {len(training.data):,} pairs in {train_language!r}"
    metrics = {"accuracy": "accuracy"}
    means = means_of(scores, metrics)
    results = {
        "options": {
            "train_language": train_language,
            "from_dev": from_dev,
            **({"train_rows": train_rows, "test_rows": test_rows} if from_dev else {}),
            "max_rows": max_rows,
        },
        "data": {"train": describe(training), "dev": describe(dev), "test": describe(test)},
        "fit": fitted,
        "scores": scores,
        "mean": means,
        "published": {"accuracy": XNLI_ACCURACY, "mean": XNLI_AVERAGE, "unit": "percent"},
    }
    table = table_of(scores, means, metrics, XNLI_ACCURACY, XNLI_AVERAGE, title, _CAPTION)
    finish(output_dir, "xnli", classifier, results, table)


def _read_splits(data_dir: Path, train_language: str) -> tuple[Bunch, Bunch, Bunch]:
    try:
        training = load_xnli(data_dir, split="train", languages=train_language)
        return training, load_xnli(data_dir, split="dev"), load_xnli(data_dir, split="test")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\nWith XNLI dev alone, use --from-dev.") from error


def split_dev(
    dev: Bunch, train_language: str, train_rows: int, test_rows: int
) -> tuple[Bunch, Bunch | None, Bunch]:
    """Divide XNLI dev into pairs to train on, in one language, and others to select and to score on, in all.

    Pairs are counted in the order of the file; those between the first and
    the last select the epoch, and None stands for them where there are none.
    A pair is in one part only, in whatever language.

    Raises
    ------
    ValueError
        The parts would overlap, or the language is missing.
    """
    n_pairs = int(dev.groups.max()) + 1
    if train_rows < 1 or test_rows < 1 or train_rows + test_rows > n_pairs:
        raise ValueError(
            f"--train-rows={train_rows} and --test-rows={test_rows} do not fit: {dev.files[0]} has {n_pairs} pairs, "
            "and no pair may be in both, in any language. Give two numbers of at least 1 with a smaller sum."
        )
    if train_language not in dev.languages:
        known = ", ".join(dict.fromkeys(dev.languages.tolist()))
        raise ValueError(f"--train-language={train_language}: {dev.files[0]} has {known}.")
    first_test = n_pairs - test_rows
    training = take(dev, (dev.groups < train_rows) & (dev.languages == train_language))
    between = (dev.groups >= train_rows) & (dev.groups < first_test)
    return training, take(dev, between) if np.any(between) else None, take(dev, dev.groups >= first_test)
