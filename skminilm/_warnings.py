"""Warnings that name the line of the user's code."""

from __future__ import annotations

import os
import sys
import warnings

import joblib
import sklearn


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and name the line of the first caller outside this package, scikit-learn and the joblib that it uses."""
    warnings.warn(message, category, stacklevel=_callers_level())


def _callers_level() -> int:
    modules = sys.modules[__package__], sklearn, joblib
    own = tuple(os.path.dirname(module.__file__) + os.sep for module in modules)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        frame, level = frame.f_back, level + 1
    return level
