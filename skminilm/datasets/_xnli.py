"""XNLI: sentence pairs in 15 languages and their relation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from ._files import field, find_file, read_jsonl, read_tsv, requested_languages, select_languages
from ._hub import is_hub_dataset, read_languages

TARGET_NAMES = ["contradiction", "entailment", "neutral"]

# Language, label, premise, hypothesis and, where it is known, what its translations have in common.
Row = tuple[str, str, str, str, "str | None"]


def load_xnli(data_dir: Any, *, split: str = "test", languages: Any = None, return_X_y: bool = False) -> Any:
    """Read XNLI [1]_, or the machine-translated MultiNLI to train on.

    Nothing is downloaded from a folder. The files are those of XNLI-1.0 and
    XNLI-MT-1.0 (https://github.com/facebookresearch/XNLI), under their names there:

    - ``XNLI-1.0/xnli.dev.tsv`` and ``xnli.test.tsv``, or the same as ``.jsonl``;
    - ``XNLI-MT-1.0/multinli/multinli.train.<language>.tsv``;
    - or ``xnli_dev.tsv.gz`` and ``xnli_test.tsv.gz`` with the columns lang, split, label, premise, hypothesis.

    Or a name on the Hugging Face hub, ``"facebook/xnli"``, or a folder with a copy
    of such a repository: one configuration a language, with the columns premise,
    hypothesis and label, and the splits train, validation and test.

    Parameters
    ----------
    data_dir : str or path
        The folder with these folders, or the one with the files; or the name.
    split : {"train", "dev", "test"}, default="test"
        Train: 392,702 pairs per language. Dev: 2,490. Test: 5,010.
    languages : str or list of str, default=None
        Two-letter codes. None: English to train on, otherwise all.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    data : Bunch
        Dictionary-like, with the following attributes.

        data : ndarray of object, shape (n_rows, 2)
            Premise and hypothesis.
        target : ndarray of str, shape (n_rows,)
            contradiction, entailment or neutral.
        languages : ndarray of str, shape (n_rows,)
            Two-letter codes.
        groups : ndarray of int64, shape (n_rows,)
            Rows with the same number are the same pair in different languages:
            by their id where there is one, otherwise by their place.
            In dev and test three pairs share a premise: this is not marked.
        target_names : list of str
            The three.
        files : list of Path, or of str
            What was read. Of the hub the addresses ``hf://datasets/...``, which say
            the commit.

    Raises
    ------
    FileNotFoundError
        No file was found (those looked for are listed), or no data set.
    ValueError
        A file has other columns, or a line a wrong field (file, line and field
        are named), or a language is missing.
    ConnectionError
        The hub cannot be reached.
    ImportError
        Data sets of the hub need the library ``datasets``.

    References
    ----------
    .. [1] A. Conneau et al., "XNLI: Evaluating Cross-lingual Sentence
       Representations", EMNLP 2018, arXiv:1809.05053.
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f"split is {split!r}: expected 'train', 'dev' or 'test'.")
    files: list[Any]
    if is_hub_dataset(data_dir):
        rows, files = _hub_rows(
            data_dir, split, "en" if split == "train" and languages is None else languages
        )
    elif split == "train":
        languages = requested_languages(languages) or ["en"]
        files = [_find_training_file(data_dir, language) for language in languages]
        rows = [
            row
            for file, language in zip(files, languages, strict=True)
            for row in _translated(file, language)
        ]
    else:
        files = [find_file(data_dir, _evaluation_names(split))]
        rows = list(_evaluation_rows(files[0], split))
        chosen = select_languages(list(dict.fromkeys(row[0] for row in rows)), languages, files[0])
        rows = [row for row in rows if row[0] in chosen]
    if not rows:
        raise ValueError(f"{files[0]} has no rows. Download it again.")
    data = np.empty((len(rows), 2), dtype=object)
    data[:, 0], data[:, 1] = [row[2] for row in rows], [row[3] for row in rows]
    target = np.array([row[1] for row in rows])
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        languages=np.array([row[0] for row in rows]),
        groups=_groups(rows),
        target_names=list(TARGET_NAMES),
        files=files,
    )


def _hub_rows(source: Any, split: str, languages: Any) -> tuple[list[Row], list[Any]]:
    split = "validation" if split == "dev" else split
    rows: list[Row] = []
    files: list[Any] = []
    for language, records, read in read_languages(source, lambda language: language, split, languages):
        for number, record in enumerate(records):
            where = f"{source}, {language} {split}, row {number}"
            premise, hypothesis, label = (
                field(record, name, str, where) for name in ("premise", "hypothesis", "label")
            )
            _check_label(label, "label", where)
            rows.append((language, label, premise, hypothesis, None))
        files += read
    return rows, files


def _evaluation_names(split: str) -> list[str]:
    official = [f"{folder}xnli.{split}.{kind}" for folder in ("XNLI-1.0/", "") for kind in ("tsv", "jsonl")]
    return [*official, f"xnli_{split}.tsv.gz"]


def _find_training_file(data_dir: Any, language: str) -> Path:
    name = f"multinli.train.{language}.tsv"
    return find_file(data_dir, [f"{folder}{name}" for folder in ("XNLI-MT-1.0/multinli/", "multinli/", "")])


def _translated(path: Path, language: str) -> Iterator[Row]:
    for line, (premise, hypothesis, label) in read_tsv(path, ["premise", "hypo", "label"]):
        if label == "contradictory":  # as the files of XNLI-MT-1.0 have it
            label = "contradiction"
        _check_label(label, "label", f"{path}, line {line}")
        yield language, label, premise, hypothesis, None


def _evaluation_rows(path: Path, split: str) -> Iterator[Row]:
    names = ["language", "gold_label", "sentence1", "sentence2"]
    if path.suffix == ".jsonl":
        for line, record in read_jsonl(path):
            where = f"{path}, line {line}"
            language, label, premise, hypothesis = (field(record, name, str, where) for name in names)
            _check_label(label, "gold_label", where)
            pair = record.get("pairID")
            yield language, label, premise, hypothesis, None if pair in (None, "") else str(pair)
    elif path.suffix == ".tsv":
        for line, (language, label, premise, hypothesis, pair) in read_tsv(path, names, ["pairID"]):
            _check_label(label, "gold_label", f"{path}, line {line}")
            yield language, label, premise, hypothesis, pair or None
    else:
        columns = ["lang", "split", "label", "premise", "hypothesis"]
        for line, (language, written, label, premise, hypothesis) in read_tsv(path, columns):
            if written != split:
                raise ValueError(
                    f"{path}, line {line}: the field 'split' is {written!r}, expected {split!r}."
                )
            _check_label(label, "label", f"{path}, line {line}")
            yield language, label, premise, hypothesis, None


def _check_label(label: str, name: str, where: str) -> None:
    if label not in TARGET_NAMES:
        raise ValueError(f"{where}: the field {name!r} is {label!r}, expected {', '.join(TARGET_NAMES)}.")


def _groups(rows: list[Row]) -> np.ndarray:
    """Number pairs by what their translations share: an id, or else the place in their language."""
    seen: dict[str, int] = {}
    known: dict[Any, int] = {}
    groups = []
    for language, *_, pair in rows:
        place = seen[language] = seen.get(language, -1) + 1
        groups.append(known.setdefault(place if pair is None else pair, len(known)))
    return np.array(groups, dtype=np.int64)
