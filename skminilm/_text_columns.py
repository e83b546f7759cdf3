"""Which columns of text an estimator was fitted on, and whether those that come later are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._validation import Texts
from ._warnings import warn


def check_both_or_none(X_val: Any, y_val: Any) -> None:
    """Refuse one without the other."""
    if (X_val is None) != (y_val is None):
        missing, given = ("X_val", "y_val") if X_val is None else ("y_val", "X_val")
        raise ValueError(
            f"X_val and y_val belong together: {missing} is None. Give it too, or leave {given} out."
        )


def check_same_columns(texts: Texts, other: Texts) -> None:
    """Refuse an X_val with other columns than X.

    Raises
    ------
    ValueError
        Their numbers differ, or their names where both have some.
    """
    if other.n_columns != texts.n_columns:
        raise ValueError(
            f"X and X_val must have the same number of columns: X has {texts.n_columns}, X_val {other.n_columns}. Give "
            "both one column of texts, or two columns of pairs."
        )
    if None not in (texts.names, other.names) and texts.names != other.names:
        raise ValueError(
            f"X and X_val must have the same columns: X has {', '.join(texts.names)}, X_val "
            f"{', '.join(other.names)}. Select, order or rename them."
        )


class TextColumnsMixin:
    """`n_features_in_` and `feature_names_in_` where each column holds texts."""

    n_features_in_: int
    feature_names_in_: np.ndarray

    def _column_attributes(self, texts: Texts) -> dict[str, Any]:
        """Return the two attributes for a fit on these texts; the names where a frame has them."""
        attributes: dict[str, Any] = {"n_features_in_": texts.n_columns}
        if texts.names is not None:
            attributes["feature_names_in_"] = np.array(texts.names, dtype=object)
        return attributes

    def _set_attributes(self, attributes: dict[str, Any]) -> None:
        """Set the attributes of a fit, those of :meth:`_column_attributes` among them."""
        if "feature_names_in_" not in attributes:
            vars(self).pop("feature_names_in_", None)  # an earlier fit may have seen names
        vars(self).update(attributes)  # at once, for Ctrl-C and for threads that read meanwhile

    def _check_columns(self, texts: Texts) -> None:
        """Refuse other columns than `fit` saw.

        Nothing is checked where `fit` was not called. One column needs no
        name; with two, whose order counts, a missing name is worth a warning.
        """
        expected = getattr(self, "n_features_in_", texts.n_columns)
        if texts.n_columns != expected:
            give = "two columns" if expected == 2 else "one column"
            if expected == 2 and len(texts) == 2:
                give = "a list of pairs, [(first, second)] for one, or two columns"
            raise ValueError(
                f"X has {texts.n_columns} features, but {type(self).__name__} is expecting {expected} features "
                f"as input: it was fitted on {'sentence pairs' if expected == 2 else 'single texts'}. Give it "
                f"{give} of str, or fit it again."
            )
        names = getattr(self, "feature_names_in_", None)
        if names is not None and texts.names is not None:
            if tuple(names) != texts.names:
                raise ValueError(
                    "The feature names should match those that were passed during fit.\n"
                    f"Names in fit: {', '.join(names)}. Names in X: {', '.join(texts.names)}. Select and order the "
                    f"columns by X[{list(names)}], rename them, or give texts without names, such as a list."
                )
        elif texts.n_columns > 1 and names is not None:
            _warn(f"X does not have valid feature names, but {type(self).__name__} was fitted with them")
        elif texts.n_columns > 1 and texts.names is not None and hasattr(self, "n_features_in_"):
            _warn(f"X has feature names, but {type(self).__name__} was fitted without feature names")


def _warn(message: str) -> None:
    warn(f"{message}: make sure that the columns are in the same order.")
