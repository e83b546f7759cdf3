"""Columns and frames of pandas, polars and pyarrow -> one view of them; called where X and y are read."""

from __future__ import annotations

from collections import UserString
from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np

_PLAIN_SEQUENCES = (list, tuple, str, UserString, bytes, bytearray, memoryview)


def view(values: Any) -> Any:
    """Return columns and frames as narwhals has them, and other values as they are; what is masked is None.

    Parameters
    ----------
    values : object
        What the user gave.

    Returns
    -------
    narwhals Series or DataFrame, ndarray, list, or `values`
        An array for what is one by ``__array__`` alone, a list for other sequences than lists, tuples and str.

    Raises
    ------
    ValueError
        A frame has two columns of one name.
    """
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        return np.where(mask, None, values.data.astype(object)) if mask.any() else values.data
    # None where nothing has imported it: then this is none of its types. Of its four containers narwhals knows two.
    pyarrow = nw.dependencies.get_pyarrow()
    if pyarrow is not None:
        if isinstance(values, pyarrow.RecordBatch):
            values = pyarrow.Table.from_batches([values])
        elif isinstance(values, pyarrow.Array):
            values = pyarrow.chunked_array([values])
    try:
        values = nw.from_native(values, allow_series=True, eager_only=True, pass_through=True)
    except Exception as error:  # its class depends on narwhals' version
        if "unique column names" not in str(error):
            raise
        raise ValueError(f"A frame has two columns of one name: rename one of them. ({error})") from error
    if hasattr(values, "__array__") and not hasattr(values, "shape"):
        return np.asarray(values)
    if isinstance(values, Sequence) and not isinstance(
        values, _PLAIN_SEQUENCES
    ):  # as a column of `datasets` is
        return list(values)
    return values


def columns_of(frame: nw.DataFrame) -> list[list]:
    """Return the values of each column of a frame."""
    return [frame.get_column(name).to_list() for name in frame.columns]
