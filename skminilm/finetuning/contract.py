"""What a training takes, what it tells on the way, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Split:
    """Which texts are trained on and which are set aside.

    Attributes
    ----------
    training, validation : ndarray of int64
        `validation` may be empty.
    """

    training: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the names are those of MiniLMClassifier.

    Attributes
    ----------
    n_iter_no_change : int or None
        Stop after so many epochs without a better validation score, and go
        back to the best; None runs all epochs and keeps the last.
    seed : int
        For the order of the texts.
    loss_scaling : bool
        Scale the loss so that gradients in float16 do not vanish.
    """

    epochs: int
    batch_size: int
    head_learning_rate: float
    warmup_ratio: float
    n_iter_no_change: int | None
    seed: int
    loss_scaling: bool = False


@dataclass
class TrainingResult:
    """What training changed, and what happened on the way.

    Attributes
    ----------
    coef : ndarray of float32, shape (n_outputs, hidden_size)
    intercept : ndarray of float32, shape (n_outputs,)
    weights : dict of str to ndarray
        Of the network.
    history : list of dict
        One per epoch: loss, learning_rate (at its end), seconds, texts_per_s;
        with validation texts validation_loss and validation_score.
    best_epoch : int
        Whose weights these are; 0: the start.
    interrupted : bool
        The user stopped it.
    """

    coef: np.ndarray
    intercept: np.ndarray
    weights: dict[str, np.ndarray]
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False


class TrainingHooks(Protocol):
    """What is called on the way."""

    def end_step(self, n_texts: int, loss: float) -> None:
        """Called after each step with its number of texts and its loss."""

    def begin_epoch(self) -> None:
        """Called when an epoch begins."""

    def end_epoch(self, result: Callable[[], TrainingResult]) -> bool:
        """Called when an epoch has ended; `result` returns the state. True ends the training."""


class TrainingDivergedError(FloatingPointError):
    """The loss or the weights became infinite or NaN.

    Attributes
    ----------
    last_good : TrainingResult or None
        The state after the last epoch that was completed.
    """

    last_good: TrainingResult | None = None
