"""Columns of a call, as users have them -> lists with one value per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import narwhals as nw

from ._containers import view
from ._validation import is_missing, shorten


def as_rows(values: Any, name: str) -> list:
    """Return a list, array or data-frame column as a list.

    Raises
    ------
    TypeError
        It is no collection, or one in which rows have no place.
    """
    values = view(values)
    if isinstance(values, nw.Series):
        return values.to_list()
    if isinstance(values, nw.DataFrame) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} has the shape {values.shape}: expected one value per row, shape (n_rows,).")
    if isinstance(values, str | bytes | dict | set | frozenset) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} is a {type(values).__name__}, {shorten(values)}: expected one value per row."
        )
    return values.tolist() if hasattr(values, "tolist") else list(values)


def reread(values: Any) -> Any:
    """Return what can be read twice: an iterator as a list, other values as they are."""
    return list(values) if isinstance(values, Iterator) else values


def check_languages(languages: Any, n_rows: int, name: str = "languages") -> list[str]:
    """Return one language code a row; one str stands for all rows.

    Raises
    ------
    TypeError, ValueError
        Another number of rows, or a value that is missing or no str; its row is named.
    """
    if isinstance(languages, str):
        return [languages] * n_rows
    languages = as_rows(languages, name)
    check_same_length(languages, n_rows, name, "language code")
    for row, language in enumerate(languages):
        if is_missing(language) or language == "":
            raise ValueError(
                f"{name} has a missing value: row {row} is {language!r}. Give each row a code, such as 'en'."
            )
        if not isinstance(language, str):
            raise TypeError(
                f"{name} must hold str: row {row} is {shorten(language)} ({type(language).__name__}). Give each "
                "row a code, such as 'en'."
            )
    return languages


def check_given(values: Any, name: str, expected: str) -> None:
    """Refuse None in the place of a y, in scikit-learn's words."""
    if values is None:
        raise ValueError(
            f"This call requires {name} to be passed, but the target {name} is None: expected {expected}."
        )


def check_same_length(values: Sized, n_rows: int, name: str, what: str) -> None:
    """Refuse a column of another length than the others."""
    if len(values) != n_rows:
        row = min(len(values), n_rows)
        longer = (
            f"{name} has none for row {row}" if len(values) < n_rows else f"row {row} of {name} is left over"
        )
        raise ValueError(
            f"{name} has {len(values)} rows, expected {n_rows}: {longer}. Give one {what} a row."
        )
