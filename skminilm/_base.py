"""What all estimators share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ._persistence import PersistenceMixin
from ._text_columns import TextColumnsMixin
from ._validation import Texts, check_texts


@cache
def documentation_address() -> str | None:
    """Return the URL that the installed package names as its documentation, without a slash at the end."""
    try:
        urls = metadata.metadata("skminilm").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return None
    addresses = dict(url.split(", ", 1) for url in urls)
    return addresses.get("Documentation", "").rstrip("/") or None


class TextEstimator(PersistenceMixin, TextColumnsMixin, BaseEstimator):
    """An estimator over one or two columns of text, which can be saved."""

    _doc_link_module = "skminilm"

    @property
    def _doc_link_template(self) -> str:
        """Where scikit-learn's HTML diagram links to: an entry of docs/api.md, or nothing without an address."""
        address = documentation_address()
        return f"{address}/api.html#skminilm.{{estimator_name}}" if address else ""

    def _validate_params(self) -> None:
        """Check parameters against `_parameter_constraints`, unless scikit-learn is told to skip that."""
        if not get_config()["skip_parameter_validation"]:
            super()._validate_params()

    def _checked_texts(self, X: Any, read: Callable[[Any], Texts] = check_texts) -> Texts:
        """Return X, read by `read`, as the texts of a prediction."""
        check_is_fitted(self)
        self._validate_params()
        texts = read(X)
        self._check_columns(texts)
        return texts

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags
