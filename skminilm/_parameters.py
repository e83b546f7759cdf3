"""Valid values of parameters that several estimators have."""

from __future__ import annotations

from typing import Any

from sklearn.utils._param_validation import Interval

TRAINING_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")


class NumberInterval(Interval):
    """Numbers between two bounds. True and False are none of them: Python counts them as 1 and 0."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Tell whether a value is allowed."""
        return not isinstance(val, bool) and super().is_satisfied_by(val)
