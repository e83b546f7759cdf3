"""What training minimises, and the score by which models are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F


class Objective(ABC):
    """A loss over the outputs of the head, and a score where larger is better."""

    @abstractmethod
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row, (n_rows,).

        Parameters
        ----------
        outputs : Tensor of float32, shape (n_rows, n_outputs)
        targets : Tensor, shape (n_rows,) or (n_rows, n_outputs)
        """

    @abstractmethod
    def score(self, outputs: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return what the estimator's ``score`` would."""


class SoftmaxObjective(Objective):
    """Cross-entropy over classes; the score is accuracy. Targets: class codes, int64 (n_rows,).

    Parameters
    ----------
    label_smoothing : float
        Share of the target probability spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of each row."""
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.label_smoothing)

    def score(self, outputs: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return the weighted accuracy."""
        return float(np.average(outputs.argmax(axis=1) == targets, weights=row_weights))


class MultilabelObjective(Objective):
    """Binary cross-entropy, mean over labels; the score is the share of rows with all labels right.

    Targets: float32 (n_rows, n_labels) of 0 and 1.

    Parameters
    ----------
    label_smoothing : float
        How far targets are moved from 0 and 1 towards one half.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over the labels of each row."""
        targets = torch.lerp(targets, torch.full_like(targets, 0.5), self.label_smoothing)
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)

    def score(self, outputs: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return the weighted subset accuracy."""
        return float(np.average(((outputs > 0) == (targets > 0)).all(axis=1), weights=row_weights))


class RegressionObjective(Objective):
    """Squared error, mean over targets; the score is R². Targets: float32 (n_rows, n_targets)."""

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of each row."""
        return (outputs - targets).square().mean(dim=1)

    def score(self, outputs: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return R², the mean over targets."""
        mean = np.average(targets, axis=0, weights=row_weights)
        residual = np.average((outputs - targets) ** 2, axis=0, weights=row_weights)
        variance = np.average((targets - mean) ** 2, axis=0, weights=row_weights)
        constant = variance == 0  # as in scikit-learn: 1 where predicted exactly, else 0
        explained = 1 - residual / np.where(constant, 1.0, variance)
        return float(np.where(constant, (residual == 0).astype(float), explained).mean())
