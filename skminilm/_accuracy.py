"""`score` of the classifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score

from ._target_validation import check_labels, check_row_weights, label_array


class AccuracyMixin(ClassifierMixin):
    """The accuracy as `score`, for labels in every container that `fit` takes."""

    classes_: np.ndarray
    multilabel_: bool

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy: the share of texts whose label, or whose labels all, are right.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.
        y : array-like of shape (n_texts,) or (n_texts, n_labels)
            As in `fit`.
        sample_weight : array-like of float, shape (n_texts,), default=None
            Weight of each text in the share.

        Returns
        -------
        float
            From 0 to 1.
        """
        predicted = self.predict(X)
        # scikit-learn's metrics do not read objects, and of NumPy's StringDType nothing.
        y = check_labels(y, *predicted.shape) if self.multilabel_ else label_array(y)
        weights = check_row_weights(sample_weight, len(predicted))
        return float(accuracy_score(y, predicted, sample_weight=weights))
