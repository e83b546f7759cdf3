"""What the commands have in common: rows of a data set, a fit, scores and what is said of them."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.utils import Bunch

from .._encoding import open_checkpoint
from .._rows import check_languages
from ..checkpoints import Checkpoint
from ._output import describe_files, write_model, write_results

console = Console()


def check_model(estimator: Any) -> Checkpoint:
    """Check the parameters of an estimator before much is read, and return its checkpoint."""
    estimator._validate_params()
    checkpoint = open_checkpoint(estimator.model, estimator.revision)
    estimator._check_checkpoint(checkpoint)
    estimator._compute(checkpoint)
    return checkpoint


def check_test(data: Bunch, check_rows: Callable[[Any], Any]) -> None:
    """Check what is scored, before anything is trained.

    Raises
    ------
    ValueError
        A row is unusable: it is named, as are the files.
    """
    try:
        check_rows(data.data)
        check_languages(data.languages, len(data.data))
    except (TypeError, ValueError) as error:
        files = ", ".join(str(file) for file in data.files)
        raise ValueError(f"What is to be scored ({files}) is not usable: {error}") from error


def printable(text: object) -> str:
    """Return text that a terminal takes: names need not be valid Unicode, and may hold what steers it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = str(text).encode(encoding, "backslashreplace").decode(encoding)
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def take(data: Bunch, rows: np.ndarray) -> Bunch:
    """Return some rows of a data set, by a mask or by their numbers."""
    return Bunch(
        **{name: value[rows] if isinstance(value, np.ndarray) else value for name, value in data.items()}
    )


def first_of_each_language(data: Bunch, max_rows: int | None) -> Bunch:
    """Return the first rows of each language; all for None."""
    if max_rows is None:
        return data
    rows = [np.flatnonzero(data.languages == language)[:max_rows] for language in np.unique(data.languages)]
    return take(data, np.sort(np.concatenate(rows)))


def describe(data: Bunch | None) -> dict[str, Any] | None:
    """Return what the results say of a data set: its rows, languages and files."""
    if data is None:
        return None
    languages = list(dict.fromkeys(data.languages.tolist()))
    return {"n_rows": len(data.data), "languages": languages, "files": describe_files(data.files)}


def warmup_ratio(warmup_steps: int | None, n_rows: int, batch_size: int, epochs: int) -> float:
    """Return the share of the steps in which the learning rate rises; for None 500, a tenth at the most."""
    n_steps = epochs * math.ceil(n_rows / batch_size)
    return min(0.1, 500 / n_steps) if warmup_steps is None else min(1.0, warmup_steps / n_steps)


def parse_trainable(trainable: str) -> str | int:
    """Return ``trainable`` as the estimators take it: a number of layers is an int."""
    return int(trainable) if trainable.isdecimal() else trainable


def fit_and_save(
    output_dir: Path, command: str, estimator: Any, *arguments: Any, **options: Any
) -> dict[str, Any]:
    """Fit, write the model, and return what the results say of the fit."""
    selecting = options.get("X_val")
    others = "" if selecting is None else f" {len(selecting):,} others choose the epoch: scored after each."
    console.print(f"Training on {len(arguments[0]):,} rows.{others}")
    begin = time.perf_counter()
    with warnings.catch_warnings():
        # What was interrupted is no result.
        warnings.filterwarnings("error", "Training interrupted", UserWarning)
        try:
            estimator.fit(*arguments, **options)
        except UserWarning as interruption:
            raise KeyboardInterrupt from interruption
    fitted = {"seconds": round(time.perf_counter() - begin, 1), "n_epochs": estimator.n_iter_}
    write_model(output_dir, command, estimator)
    return {**fitted, "best_epoch": estimator.best_epoch_, "history": estimator.history_}


def means_of(scores: list[dict[str, Any]], metrics: Iterable[str]) -> dict[str, float]:
    """Return the means of some metrics over languages."""
    return {metric: float(np.mean([row[metric] for row in scores])) for metric in metrics}


def table_of(
    scores: list[dict[str, Any]],
    means: dict[str, float],
    metrics: dict[str, str],
    published: dict[str, float],
    average: float | None,
    title: str,
    caption: str,
) -> Table:
    """Return a table of scores beside the published ones.

    Parameters
    ----------
    scores : list of dict
        One a language, as :func:`score_by_language` has them.
    means : dict of str to float
        Of each metric over languages.
    metrics : dict of str to str
        Columns of scores and what the table calls them; the first is the one published.
    published : dict of str to float
        Of each language, in percent; empty where nothing is.
    average : float or None
        The published mean; shown where all languages are that it is of.
    title, caption : str
        What was measured, and what keeps the columns from being compared.
    """
    table = Table(title=escape(printable(title)), caption=escape(caption))
    table.add_column("language")
    for heading in ("rows", *metrics.values(), "95 %"):
        table.add_column(heading, justify="right")
    if published:
        table.add_column("published", justify="right")

    def add(name: str, n: str, values: list[float], interval: str, known: float | None) -> None:
        cells = [escape(printable(name)), n, *(f"{100 * value:.1f}" for value in values), interval]
        table.add_row(*cells, *(["" if known is None else f"{known:.1f}"] if published else []))

    order = {language: place for place, language in enumerate(published)}
    for row in sorted(scores, key=lambda row: order.get(row["language"], len(order))):
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        add(
            row["language"],
            f"{row['n']:,}",
            [row[m] for m in metrics],
            interval,
            published.get(row["language"]),
        )
    table.add_section()
    is_of_all = {row["language"] for row in scores} == set(published)
    add("mean", "", list(means.values()), "", average if is_of_all else None)
    return table


def finish(output_dir: Path, command: str, estimator: Any, results: dict[str, Any], table: Table) -> None:
    """Write what was found, then show it: a terminal that fails costs no training."""
    path = write_results(output_dir, command, estimator, results)
    if estimator.best_epoch_ == 0:
        console.print("No epoch was better than the untrained start: the scores are its own.")
    console.print(table)
    console.print(
        f"Written: {printable(path)} and {printable(path.parent / 'model')}", soft_wrap=True, markup=False
    )
