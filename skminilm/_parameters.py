"""What parameters of several estimators may be."""

from __future__ import annotations

from typing import Any

from sklearn import get_config
from sklearn.utils._param_validation import Interval

TRAINING_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")


class ParameterValidationMixin:
    """Checks parameters against `_parameter_constraints`, unless scikit-learn is told to skip that."""

    def _validate_params(self) -> None:
        if not get_config()["skip_parameter_validation"]:
            super()._validate_params()


class NumberInterval(Interval):
    """Numbers between two bounds. True and False are none of them: Python counts them as 1 and 0."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Tell whether a value is allowed."""
        return not isinstance(val, bool) and super().is_satisfied_by(val)
