"""What a running fit reports to: a progress bar, and scikit-learn's callbacks where it has them (1.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._progress import tqdm

if TYPE_CHECKING:
    from .finetuning import TrainingResult

Fit = TypeVar("Fit", bound=Callable)

try:
    from sklearn import callback
    from sklearn.callback import CallbackSupportMixin
except ImportError:
    CAN_CALL_BACK = False

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""
else:
    CAN_CALL_BACK = True


def with_callbacks(fit: Fit) -> Fit:
    """Let a `fit` call scikit-learn's callbacks, where it has them."""
    return callback.with_callbacks(fit) if CAN_CALL_BACK else fit


class FitProgress:
    """Tells of a fit: by a bar where ``verbose`` asks for it, and to scikit-learn's callbacks.

    Its methods are those of ``finetuning.TrainingHooks``.

    Parameters
    ----------
    estimator : estimator
        Its `fit` is decorated by `with_callbacks`.
    X, y : array-like
        What it is fitted on.
    sample_weight : array-like or None
        What `fit` was given.
    n_epochs, n_texts : int
        At most so many epochs, of so many texts each.
    attributes : callable
        Returns what the estimator's attributes are after a training result.
    """

    def __init__(
        self,
        estimator: Any,
        X: Any,
        y: Any,
        sample_weight: Any,
        n_epochs: int,
        n_texts: int,
        attributes: Callable[[TrainingResult], dict[str, Any]],
    ) -> None:
        self.attributes = attributes
        self._new_bar = lambda: tqdm(total=n_epochs * n_texts, desc="fine-tune", unit="text")
        self._verbose = estimator.verbose
        self._bar: tqdm | None = None
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._data = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._epoch: Any = None
        self._fit = estimator._init_callback_context(max_subtasks=n_epochs) if CAN_CALL_BACK else None
        if self._fit:
            self._fit.call_on_fit_task_begin(**self._data)

    def __enter__(self) -> FitProgress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin_epoch(self) -> None:
        """Called when an epoch begins."""
        if self._verbose and self._bar is None:
            self._bar = self._new_bar()
        if self._fit:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._data)

    def end_step(self, n_texts: int, loss: float) -> None:
        """Called after each step."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self._bar.update(n_texts)

    def end_epoch(self, result: Callable[[], TrainingResult]) -> bool:
        """Called when an epoch has ended; return whether a callback wants to stop."""
        if not self._fit:
            return False
        return self._epoch.call_on_fit_task_end(
            **self._data, reconstruction_attributes=lambda: self.attributes(result())
        )

    def end_fit(self) -> None:
        """Called when the fit has ended and the estimator has what it learned."""
        if self._fit:
            self._fit.call_on_fit_task_end(**self._data, reconstruction_attributes={})
