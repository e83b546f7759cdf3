"""scikit-learn's callbacks, where the installed version has them (1.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:
    CAN_CALL_BACK = False

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Callable) -> Callable:
        """Return the method as it is."""
        return method
else:
    CAN_CALL_BACK = True


class EpochCallbacks:
    """Tells the callbacks of an estimator where its fit stands; nothing where there are none.

    Parameters
    ----------
    estimator : estimator
        Its `fit` is decorated by `with_callbacks`.
    n_epochs : int
        At most so many.
    X, y : array-like
        What it is fitted on.
    """

    def __init__(self, estimator: Any, n_epochs: int, X: Any, y: Any) -> None:
        self._data = {"estimator": estimator, "X": X, "y": y}
        self._fit = estimator._init_callback_context(max_subtasks=n_epochs) if CAN_CALL_BACK else None
        self._epoch = None
        if self._fit:
            self._fit.call_on_fit_task_begin(**self._data)

    def begin_epoch(self) -> None:
        """Tell of an epoch that begins."""
        if self._fit:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._data)

    def end_epoch(self, attributes: Callable[[], dict[str, Any]]) -> bool:
        """Tell of an epoch that ended; return whether a callback wants to stop.

        Parameters
        ----------
        attributes : callable
            Returns what a model fitted so far would have as attributes.
        """
        if not self._fit:
            return False
        return self._epoch.call_on_fit_task_end(**self._data, reconstruction_attributes=attributes)

    def end_fit(self) -> None:
        """Tell of the end."""
        if self._fit:
            self._fit.call_on_fit_task_end(**self._data)
