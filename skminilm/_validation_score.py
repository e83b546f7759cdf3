"""The score of texts that are set aside, by one of scikit-learn's scorers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ._targets import Targets
from ._validation import Texts

if TYPE_CHECKING:
    from ._fine_tuned import FineTunedEstimator


def validation_score(
    estimator: FineTunedEstimator,
    targets: Targets,
    texts: Texts,
    values: np.ndarray,
    row_weights: np.ndarray,
) -> Callable[[np.ndarray], float]:
    """Return what computes a score of texts from the outputs of a head, as the estimator's `scoring` says.

    Parameters
    ----------
    estimator : MiniLMClassifier or MiniLMRegressor
    targets : Targets
        Of the texts that are trained on.
    texts : Texts
        Those that are set aside.
    values, row_weights : ndarray
        Of these texts, as training takes them.

    Returns
    -------
    callable
        Takes outputs, float32 (n_texts, n_outputs), in the order of `texts`.
        Raises ValueError where the score is NaN.

    Raises
    ------
    ValueError
        No scorer has this name.
    """
    from sklearn.metrics import check_scoring

    scorer = check_scoring(estimator, scoring=estimator.scoring)
    X = texts.first if texts.second is None else list(zip(texts.first, texts.second, strict=True))
    y = targets.decode(values)
    is_weighted = len(np.unique(row_weights)) > 1 and _takes_weights(scorer)
    weights = {"sample_weight": row_weights} if is_weighted else {}

    def score(outputs: np.ndarray) -> float:
        fitted = _fitted_view(estimator, targets, X, targets.decode_outputs(outputs))
        found = float(scorer(fitted, X, y, **weights))
        if math.isnan(found):
            raise ValueError(
                f"scoring={estimator.scoring!r} gives NaN for the {len(X)} texts that are set aside, and no epoch is better "
                "than another by that: set more or other texts aside, or choose another score."
            )
        return found

    return score


def _takes_weights(scorer: Callable[..., float]) -> bool:
    """Tell whether a scorer, or the metric that scikit-learn made it of, takes `sample_weight`."""
    parameters = inspect.signature(getattr(scorer, "_score_func", scorer)).parameters.values()
    return any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)


def _fitted_view(estimator: FineTunedEstimator, targets: Targets, X: list, outputs: np.ndarray) -> Any:
    """Return the estimator as if it were fitted, for whom the outputs of one X are there already."""

    def outputs_of(given: Any, of_part: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        if given is not X:
            raise ValueError(
                "While fit runs, a scorer can have predictions of all the texts that are set aside, together: give predict the "
                "X that the scorer got."
            )
        return of_part(outputs) if of_part else outputs

    view = copy.copy(estimator)
    no_head = np.zeros((targets.n_outputs, 1), np.float32), np.zeros(targets.n_outputs, np.float32)
    view.__dict__.update(estimator._target_attributes(targets, *no_head), _outputs=outputs_of)
    return view
