"""X as users have it -> lists of str, one or two columns; errors that name the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import narwhals as nw
import numpy as np

from ._containers import columns_of, view

_EXPECTED = (
    "Expected a list, array, or data-frame column of str with one text per row, or two columns for pairs"
)

# Line-break hints, joiners, direction marks, control characters, and two signs that the tokenizer reads as a space.
_INVISIBLE = frozenset(
    "\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u2060\u2581\ufeff\ufffd"
    + "".join(
        chr(code)
        for first, last in (
            (0x00, 0x1F),
            (0x7F, 0x9F),
            (0x202A, 0x202E),
            (0x2061, 0x2064),
            (0x2066, 0x2069),
        )
        for code in range(first, last + 1)
    )
)


@dataclass(frozen=True)
class Texts:
    """Validated input: one text per row, or two.

    Attributes
    ----------
    first : list of str
    second : list of str or None
        The second texts of sentence pairs.
    names : tuple of str or None
        Of the columns, where they came as a data frame whose names are str.
    """

    first: list[str]
    second: list[str] | None = None
    names: tuple[str, ...] | None = None

    @property
    def n_columns(self) -> int:
        """1, or 2 for sentence pairs."""
        return 1 if self.second is None else 2

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Sequence[int] | np.ndarray) -> Texts:
        """Return some of the rows, each once and in their order; these texts themselves where that is all."""
        if len(rows) == len(self):
            return self
        second = None if self.second is None else [self.second[row] for row in rows]
        return Texts([self.first[row] for row in rows], second, self.names)

    def slices(self, n_characters: int, a_text: int = 0) -> Iterator[range]:
        """Yield rows that have about so many characters together; each text counts `a_text` more than it has."""
        sizes = np.fromiter(map(len, self.first), np.int64, len(self)) + a_text
        if self.second is not None:
            sizes += np.fromiter(map(len, self.second), np.int64, len(self))
        characters = np.cumsum(sizes)
        start = 0
        while start < len(self):
            done = characters[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(characters, done + n_characters, side="right")))
            yield range(start, stop)
            start = stop

    def join(self, other: Texts) -> Texts:
        """Return the rows of both, which have as many columns."""
        second = None if self.second is None else self.second + (other.second or [])
        return Texts(self.first + other.first, second, self.names)


def check_texts(X: Any, name: str = "X", *, missing: str | None = None) -> Texts:
    """Return X as lists of str.

    Parameters
    ----------
    X : list, tuple, ndarray, or pandas / polars / pyarrow column or frame
        One column: texts. Two columns: sentence pairs.
    name : str, default="X"
        What errors call it.
    missing : {"error", "empty"} or None, default=None
        What None, NaN and NA become: an error, or the empty text. None: an
        error, of an estimator without this parameter.

    Raises
    ------
    TypeError
        X is a bare str, or some value is not a str. The row is named.
    ValueError
        X is empty, ragged or has more than two columns, or a value cannot be
        encoded in UTF-8. The row is named.
    """
    if isinstance(X, str | bytes):
        listed = f"[{name}]" if isinstance(X, str) else f"[{name}.decode('utf-8')]"
        raise TypeError(
            f"{name} is a bare {type(X).__name__}: {shorten(X)}. {_EXPECTED}: put it in a list, {listed}."
        )
    columns, column_names = _columns(X, name)
    if not columns[0]:
        raise ValueError(f"{name} is empty. {_EXPECTED}.")
    places = [""] if len(columns) == 1 else [", first column", ", second column"]
    checked = [
        _check_column(column, name, place, missing) for column, place in zip(columns, places, strict=True)
    ]
    return Texts(checked[0], checked[1] if len(checked) == 2 else None, column_names)


def shorten(value: object, limit: int = 60) -> str:
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shorten_list(values: Sequence, limit: int = 10) -> str:
    """Return the first values as text, and how many there are where these are not all."""
    some = ", ".join(map(shorten, values[:limit]))
    return f"[{some}]" if len(values) <= limit else f"[{some}, ...] ({len(values):,} in all)"


def _columns(X: Any, name: str) -> tuple[list[list], tuple[str, ...] | None]:
    """Split any supported container into one or two lists of values; beside them a frame's names."""
    X = view(X)
    if isinstance(X, nw.Series):
        return _columns_of(X.to_list(), name), None
    if isinstance(X, nw.DataFrame):
        _check_n_columns(len(X.columns), name)
        return columns_of(X), _column_names(X.columns, name)
    if isinstance(X, np.ndarray) or (hasattr(X, "__array__") and hasattr(X, "ndim")):
        array = np.asarray(X)
        if array.ndim == 1:
            return _columns_of(array.tolist(), name), None
        if array.ndim != 2:
            remedy = f": put it in a list, [{name}]" if array.ndim == 0 else ""
            raise ValueError(f"{name} has {array.ndim} dimensions. {_EXPECTED}{remedy}.")
        _check_n_columns(array.shape[1], name, n_rows=len(array))
        return [array[:, column].tolist() for column in range(array.shape[1])], None
    if isinstance(X, dict | set | frozenset) or not isinstance(X, Iterable):
        collect = ": call its collect()" if hasattr(X, "collect") else ""  # a lazy frame of polars, for one
        raise TypeError(f"{name} is a {type(X).__name__}: {shorten(X)}. {_EXPECTED}{collect}.")
    return _columns_of(list(X), name), None


def _column_names(names: Sequence, name: str) -> tuple[str, ...] | None:
    """Return the names of a frame's columns where they are str; refuse a mix, as scikit-learn does."""
    are_str = [isinstance(column, str) for column in names]
    if any(are_str) and not all(are_str):
        raise TypeError(
            f"{name} has the columns {list(names)}: feature names are only supported if all of them are str. "
            f"Rename them, for instance by {name}.columns = {name}.columns.astype(str)."
        )
    return tuple(names) if all(are_str) else None


def _columns_of(rows: list, name: str) -> list[list]:
    """Return one column, or two where the rows are pairs."""
    first = rows[0] if rows else None
    if isinstance(view(first), nw.Series):  # rows of a frame, as its iterrows() gives them
        rows = [list(row) if isinstance(view(row), nw.Series) else row for row in rows]
        first = rows[0]
    has_columns = isinstance(first, list | tuple) or (isinstance(first, np.ndarray) and first.ndim > 0)
    return _split_rows(rows, name) if has_columns else [rows]


def _check_n_columns(n_columns: int, name: str, n_rows: int | None = None) -> None:
    if n_columns not in (1, 2):
        # Two rows may be meant as two columns.
        across = f" Its two rows are the texts of pairs? Then give list(zip(*{name}))." if n_rows == 2 else ""
        raise ValueError(
            f"{name} has {n_columns} columns. {_EXPECTED}: select the column(s) to read, join the fields of a record into "
            f"one text (df['subject'] + '. ' + df['body']), or give each an encoder of its own in a ColumnTransformer.{across}"
        )


def _split_rows(rows: list, name: str) -> list[list]:
    n_columns = len(rows[0])
    _check_n_columns(n_columns, name, n_rows=len(rows))
    for number, row in enumerate(rows):
        if not isinstance(row, list | tuple | np.ndarray) or len(row) != n_columns:
            raise ValueError(
                f"{name} is ragged: row 0 has {n_columns} column(s), row {number} is {shorten(row)}. {_EXPECTED}."
            )
    return [[row[column] for row in rows] for column in range(n_columns)]


def _check_column(values: list, name: str, place: str, missing: str | None) -> list[str]:
    texts = []
    for row, value in enumerate(values):
        if not isinstance(value, str) and hasattr(value, "as_py"):  # a scalar of pyarrow
            value = value.as_py()
        if not isinstance(value, str):
            if not is_missing(value):
                remedy = "Convert it, for example with str(value) or Series.astype(str)."
                if isinstance(value, Number):
                    remedy = (
                        "Convert it, for example with str(value) or Series.astype(str), if it is a code; leave columns of "
                        "numbers to a ColumnTransformer beside MiniLMEncoder, or to a StackingClassifier beside MiniLMClassifier."
                    )
                if isinstance(value, bytes | bytearray):
                    remedy = "Decode it, for example with value.decode('utf-8')."
                if isinstance(value, dict):
                    remedy = (
                        f"Take one field, for example [row['text'] for row in {name}], or give pairs of them as two "
                        "columns."
                    )
                elif isinstance(value, list | tuple | np.ndarray):
                    remedy = "Give texts, or pairs of them as two columns."
                raise TypeError(
                    f"{name} must hold str: row {row}{place} is {shorten(value)} ({type(value).__name__}). {remedy}"
                )
            if missing != "empty":
                other = ", or use missing='empty'" if missing else ""
                raise ValueError(
                    f"{name} has a missing value: row {row}{place} is {value!r}. Drop the row or fill it "
                    f"(Series.fillna('')){other}."
                )
            value = ""
        texts.append(value)
    _check_encodable(texts, name, place)
    return texts


def is_missing(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return type(value).__name__ in ("NAType", "NaTType")


def _check_encodable(texts: list[str], name: str, place: str) -> None:
    """Refuse lone surrogates, which no tokenizer can read."""
    for row, text in enumerate(texts):
        position = lone_surrogate(text)
        if position is not None:
            raise ValueError(
                f"{name} has a text that is not valid Unicode: row {row}{place} holds a lone surrogate at position "
                f"{position}: {shorten(text)}. Repair it with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
            )


def lone_surrogate(text: str) -> int | None:
    """Return where half of a surrogate pair stands."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def is_blank(character: str) -> bool:
    """Tell whether a character is whitespace, or shows or says nothing."""
    return character.isspace() or character in _INVISIBLE
