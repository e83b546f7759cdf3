"""Read y and weights: labels, indicator matrices, numbers. Errors name the row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Number, Real
from typing import Any

import narwhals as nw
import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import type_of_target

from ._containers import columns_of, view
from ._rows import check_given, check_same_length
from ._validation import is_missing, lone_surrogate, shorten, shorten_list
from ._warnings import warn

_BINARIZER = (
    "For several labels per text make an indicator matrix with sklearn.preprocessing.MultiLabelBinarizer."
)


def check_classes(y: Any, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes of y and each row's class code.

    Parameters
    ----------
    y : array-like of shape (n_rows,)
        Labels: str, int or bool.
    n_rows : int
        Rows of X.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
    codes : ndarray of int64, shape (n_rows,)

    Raises
    ------
    ValueError
        y has another length than X, a missing label, real numbers, several
        columns, or fewer than two classes.
    """
    labels = label_array(y)
    check_same_length(labels, n_rows, "y", "label")
    _warn_of_objects(y, labels)
    classes, codes = find_classes(labels)
    if len(classes) < 2:
        raise ValueError(f"y has one class only, {classes.tolist()[0]!r}: a classifier needs at least two.")
    return classes, codes


def _warn_of_objects(y: Any, labels: np.ndarray) -> None:
    dtype = getattr(y, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "O" and labels.dtype.kind in "biuf":
        held, wanted = ("bools", "bool") if labels.dtype.kind == "b" else ("numbers", "int")
        warn(
            f"y has the dtype object and holds {held}: scikit-learn's cross-validation does not stratify it, and its metrics "
            f"refuse it. Use y.astype({wanted})."
        )


def find_classes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes of what :func:`label_array` returned, and each row's class code.

    Raises
    ------
    ValueError
        y holds real numbers.
    """
    target_type = type_of_target(y, input_name="y")
    if target_type not in ("binary", "multiclass"):
        raise ValueError(f"y is {target_type}: a classifier needs discrete labels, such as str or int.")
    classes, codes = np.unique(y, return_inverse=True)
    for label in classes.tolist():
        if isinstance(label, str) and lone_surrogate(label) is not None:
            raise ValueError(
                f"y has a label that is not valid Unicode, which no file can hold: {shorten(label)}."
            )
    return classes, codes.astype(np.int64)


def encode_classes(
    y: Any,
    n_rows: int | None,
    classes: np.ndarray,
    name: str = "y",
    source: str = "the training y",
    remedy: str = "",
) -> np.ndarray:
    """Return each row's class code among known classes, which are those of `source`, int64 (n_rows,).

    Errors call y `name`; where `n_rows` is None, y may have any length.

    Raises
    ------
    ValueError
        y has another length than X, or a label that is not known; its row is named.
    """
    y = label_array(y, name)
    if n_rows is not None:
        check_same_length(y, n_rows, name, "label")
    known = {label: code for code, label in enumerate(classes.tolist())}
    codes = np.empty(len(y), np.int64)
    for row, label in enumerate(y.tolist()):
        if label not in known:
            raise ValueError(f"{name} has a label that {source} lacks: row {row} is {label!r}.{remedy}")
        codes[row] = known[label]
    return codes


def is_multilabel(y: Any) -> bool:
    """Tell whether y has several columns."""
    y = _unnest(view(y))
    shape = getattr(y, "shape", None)
    if shape is None and isinstance(y, list | tuple) and y and isinstance(y[0], list | tuple | np.ndarray):
        return np.ndim(y[0]) > 0 and len(y[0]) > 1
    return shape is not None and len(shape) == 2 and shape[1] > 1


def check_labels(y: Any, n_rows: int | None, n_labels: int | None = None, name: str = "y") -> np.ndarray:
    """Return an indicator matrix as float32 (n_rows, n_labels).

    Parameters
    ----------
    y : array-like, data frame or sparse matrix of 0 and 1 (or bool)
    n_rows : int or None
        Rows of X; None: y may have any number.
    n_labels : int or None
        Columns that it must have.
    name : str, default="y"
        What errors call y.

    Raises
    ------
    ValueError
        Another shape, or a value that is neither 0 nor 1; its row is named.
    """
    y = _number_array(
        y,
        name,
        "one column of 0 and 1 a label (MultiLabelBinarizer makes them of lists of names; for several columns of classes "
        "use MultiOutputClassifier around this estimator)",
    )
    if n_rows is not None:
        check_same_length(y, n_rows, name, "0 or 1 a label")
    if y.ndim != 2 or (n_labels is not None and y.shape[1] != n_labels):
        expected = n_labels if n_labels is not None else "n_labels"
        raise ValueError(f"{name} has the shape {y.shape}: expected ({len(y)}, {expected}).")
    bad = np.argwhere((y != 0) & (y != 1))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{name} has several columns, so that each has to be 0 or 1: row {row}, column {column} is "
            f"{y[row, column]:g}. For one class per text give one column; for several columns of classes use MultiOutputClassifier."
        )
    return y.astype(np.float32)


def check_numbers(y: Any, n_rows: int, n_targets: int | None = None, name: str = "y") -> np.ndarray:
    """Return finite numbers as float64, shape (n_rows,) or (n_rows, n_targets); errors call y `name`.

    Raises
    ------
    TypeError, ValueError
        Another shape, or a value that is not a finite number; its row is named.
    """
    y = _number_array(y, name, "one number per text, or one column per target")
    check_same_length(y, n_rows, name, "number")
    if (
        y.ndim > 2
        or y.shape[-1] == 0
        or (n_targets is not None and (1 if y.ndim == 1 else y.shape[1]) != n_targets)
    ):
        raise ValueError(f"{name} has the shape {y.shape}: expected {n_targets or 'n'} number(s) per text.")
    bad = np.argwhere(~np.isfinite(y))
    if len(bad):
        place = f"row {bad[0][0]}" + (f", column {bad[0][1]}" if y.ndim == 2 else "")
        raise ValueError(f"{name} has a number that is not finite: {place} is {y[tuple(bad[0])]}.")
    return y


def _number_array(y: Any, name: str, expected: str) -> np.ndarray:
    check_given(y, name, expected)
    if isinstance(y, str | bytes | dict | set | frozenset):
        raise TypeError(f"{name} is a {type(y).__name__}: {shorten(y)}. Expected {expected}.")
    y = _unnest(view(y))
    if isinstance(y, nw.Series | nw.DataFrame):
        y = y.to_numpy()
    elif hasattr(y, "toarray"):  # a sparse matrix
        y = (y if y.dtype.kind == "c" else y.astype(np.float64)).toarray()
    try:
        array = np.asarray(y)
        if array.dtype.kind in "mM":
            raise ValueError("dates and times: give numbers, such as days since a date")
        if array.dtype.kind == "c":
            raise ValueError("it is complex")
        y = array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} holds what is not a number ({error}): expected {expected}.") from error
    if y.ndim == 0:
        raise TypeError(f"{name} is a single value, {y}: expected {expected}.")
    return y


def _unnest(y: Any) -> Any:
    """Return a column or an array of sequences as a list of lists, and what is something else as it is."""
    if isinstance(y, nw.Series) and y.dtype in (nw.List, nw.Array, nw.Object):
        rows = y.to_list()
    elif isinstance(y, np.ndarray) and y.dtype == object and y.ndim == 1:
        rows = y.tolist()
    else:
        return y
    is_nested = rows and all(isinstance(row, list | tuple | np.ndarray) for row in rows)
    return [list(row) for row in rows] if is_nested else y


def label_array(y: Any, name: str = "y") -> np.ndarray:
    """Return y as an array of shape (n,) whose labels are of one type; errors call it `name`."""
    y = _one_column(y, name)
    labels = y.tolist()
    for row, label in enumerate(labels):
        if is_missing(label):
            raise ValueError(
                f"{name} has a missing label: row {row} is {label!r}. Drop the row from the texts too."
            )
    if y.dtype == object or y.dtype.kind == "T":  # scikit-learn does not know NumPy's StringDType
        y = _array_of_one_type(labels, name)
    if y.dtype.kind in "mM":
        raise ValueError(f"{name} holds dates or times: convert them to str.")
    if y.dtype == object:  # dates of pandas, Decimal, ints of more than 64 bits
        kind = type(labels[0]).__name__
        if isinstance(labels[0], set | frozenset):
            raise ValueError(f"{name} holds sets of labels: {_BINARIZER}")
        raise ValueError(f"{name} has labels of the type {kind} that no array keeps: convert them to str.")
    return y


def _one_column(y: Any, name: str) -> np.ndarray:
    """Return the labels of any container as an array of shape (n,), of whatever type they are."""
    check_given(y, name, "one label per text")
    y = view(y)
    if isinstance(y, nw.Series):
        y = y.to_list()
    elif isinstance(y, nw.DataFrame):
        columns = columns_of(y)
        y = np.empty((len(y), len(columns)), dtype=object)
        for number, column in enumerate(columns):
            y[:, number] = column
    if isinstance(y, str | bytes | dict | set | frozenset) or not (
        hasattr(y, "shape") or isinstance(y, Iterable)
    ):
        raise TypeError(
            f"{name} is a {type(y).__name__}: {shorten(y)}. Expected a list or array with one label per text."
        )
    if hasattr(y, "toarray"):  # a sparse matrix
        y = y.toarray()
    if not hasattr(y, "shape"):  # NumPy would turn ["a", 1] into ["a", "1"]
        y = [_plain(label) for label in y]
        widths = {len(label) if isinstance(label, list | tuple) else None for label in y}
        if len(widths) > 1:
            raise ValueError(f"{name} is ragged: expected one label per text, shape (n_texts,). {_BINARIZER}")
        y = np.array(y, dtype=object)
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        warn(
            f"A column-vector {name} was passed when a 1d array was expected: its shape is {y.shape}. "
            f"Use {name}.ravel().",
            DataConversionWarning,
        )
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{name} has the shape {y.shape}: expected one label per text, shape (n_texts,).")
    return y


def _array_of_one_type(labels: list, name: str) -> np.ndarray:
    """Return labels as an array that keeps them."""
    kinds = {kind_of_label(label) for label in labels}
    if len(kinds) > 1:
        raise ValueError(
            f"{name} mixes labels of the types {', '.join(sorted(kinds))}: convert them to one, such as str."
        )
    if kinds == {"str"}:  # of an Enum NumPy would take the name, cut off at the length of the value
        labels = [str.__str__(label) for label in labels]
    array = np.array(labels)
    if array.dtype.kind == "f" and all(isinstance(label, Integral) for label in labels):
        raise ValueError(f"{name} holds ints that 64 bits do not keep: convert them to str.")
    for row, (label, kept) in enumerate(zip(labels, array.tolist(), strict=True)):
        if isinstance(label, str | bytes) and label != kept:
            raise ValueError(
                f"{name} has a label that ends in NUL, which arrays do not keep: row {row} is {label!r}."
            )
    return array


def _plain(label: object) -> object:
    """Return what an array of no dimension, or a scalar of pyarrow, holds."""
    if isinstance(label, np.ndarray) and label.ndim == 0:
        return label.item()
    return label.as_py() if hasattr(label, "as_py") else label


def kind_of_label(label: object) -> str:
    """Return what labels have to have in common: str, bool, number, or the name of another type."""
    if isinstance(label, str):
        return "str"
    if isinstance(label, bool | np.bool_):
        return "bool"
    return "number" if isinstance(label, Number) else type(label).__name__


def check_row_weights(sample_weight: Any, n_rows: int, name: str = "sample_weight") -> np.ndarray:
    """Return one finite weight >= 0 a row, the largest 1, float64 (n_rows,); equal ones for None or a number.

    Only their ratios count, and so no sum of them overflows.

    Raises
    ------
    TypeError, ValueError
        Another length, what is no number, a negative or non-finite weight, or all are zero.
    """
    if sample_weight is None:
        return np.ones(n_rows)
    if isinstance(sample_weight, Real) and not isinstance(sample_weight, bool):  # as in scikit-learn
        sample_weight = np.full(n_rows, sample_weight)
    weights = _number_array(sample_weight, name, "one weight per text")
    if weights.shape != (n_rows,):
        raise ValueError(f"{name} has the shape {weights.shape}, expected ({n_rows},): one weight per text.")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"{name} of row {bad[0]} is {weights[bad[0]]}: weights must be finite and >= 0.")
    if not weights.any():
        raise ValueError(f"{name} is zero in every row: give some row a positive weight.")
    return weights / weights.max()


def complete_class_weight(class_weight: dict, classes: np.ndarray) -> np.ndarray:
    """Return a weight for each class, that of the dict or 1, float64 (n_classes,).

    Raises
    ------
    ValueError
        A weight is negative or not finite; or the dict names a class that y
        does not hold while it leaves out one that y holds (a misspelling).
    """
    labels = classes.tolist()
    for label, weight in class_weight.items():
        if not isinstance(weight, Real):
            raise TypeError(f"class_weight of {label!r} is {weight!r}: weights must be numbers.")
        if not 0 <= float(weight) < math.inf:
            raise ValueError(f"class_weight of {label!r} is {weight}: weights must be finite and >= 0.")
    held = set(labels)
    unknown = [label for label in class_weight if label not in held]
    unweighted = [label for label in labels if label not in class_weight]
    if unknown and unweighted:
        raise ValueError(
            f"class_weight names the class {unknown[0]!r}, which y does not hold, and leaves out "
            f"{unweighted[0]!r} (a misspelling?): the classes of y are {shorten_list(labels)}."
        )
    return np.array([float(class_weight.get(label, 1.0)) for label in labels])
