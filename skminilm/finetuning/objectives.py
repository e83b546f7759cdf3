"""What training minimises, and the score by which models are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F

from ..engine.spans import best_spans, mask_outside, pad_logits


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

    def validation_losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row without weights of classes; here there are none."""
        return self.losses(outputs, targets)

    def predictions(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return what `score` needs of the outputs, (n_rows, ...); here all of them."""
        return outputs

    @abstractmethod
    def score(self, predictions: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return what epochs are compared by, larger for better ones."""


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

    def score(self, predictions: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return the weighted accuracy."""
        return float(np.average(predictions.argmax(axis=1) == targets, weights=row_weights))


class MultilabelObjective(Objective):
    """Binary cross-entropy, mean over labels; the score is the share of rows with all labels right.

    Targets: float32 (n_rows, n_labels) of 0 and 1.

    Parameters
    ----------
    label_weights : ndarray of float, shape (2, n_labels)
        How much rows without and with each label count.
    label_smoothing : float
        How far targets are moved from 0 and 1 towards one half.
    """

    def __init__(self, label_weights: np.ndarray, label_smoothing: float = 0.0) -> None:
        self._label_weights = torch.from_numpy(label_weights.astype(np.float32))
        self.label_smoothing = label_smoothing

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of the cross-entropies of the labels of each row."""
        if self._label_weights.device != targets.device:
            self._label_weights = self._label_weights.to(targets.device)
        without, having = self._label_weights
        return self._cross_entropy(outputs, targets, torch.lerp(without, having, targets))

    def validation_losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean of the cross-entropies of the labels of each row."""
        return self._cross_entropy(outputs, targets)

    def _cross_entropy(
        self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        targets = torch.lerp(targets, torch.full_like(targets, 0.5), self.label_smoothing)
        return F.binary_cross_entropy_with_logits(outputs, targets, weights, reduction="none").mean(dim=1)

    def score(self, predictions: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return the weighted subset accuracy."""
        return float(np.average(((predictions > 0) == (targets > 0)).all(axis=1), weights=row_weights))


class RegressionObjective(Objective):
    """Squared error, mean over targets; the score is R². Targets: float32 (n_rows, n_targets)."""

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of each row."""
        return (outputs - targets).square().mean(dim=1)

    def score(self, predictions: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return R², the mean over targets."""
        mean = np.average(targets, axis=0, weights=row_weights)
        residual = np.average((predictions - targets) ** 2, axis=0, weights=row_weights)
        variance = np.average((targets - mean) ** 2, axis=0, weights=row_weights)
        # As in scikit-learn 1 where predicted exactly, else 0. A weighted mean of equal numbers may differ from them by
        # rounding, which would pass for variance.
        constant = (variance == 0) | (targets == targets[:1]).all(axis=0)
        explained = 1 - residual / np.where(constant, 1.0, variance)
        return float(np.where(constant, (residual == 0).astype(float), explained).mean())


class SpanObjective(Objective):
    """Cross-entropy of the first and of the last token of an answer; the score is the share of exact spans.

    Outputs: float32 (n_tokens, 2), the tokens of the rows one after the other.
    Targets: int64 (n_rows, 5): the first and the last token of the answer (0
    and 0: it is not there), where the context begins and stops, and the
    tokens of the row.

    Parameters
    ----------
    max_answer_length : int
        Tokens of an answer that is predicted.
    """

    def __init__(self, max_answer_length: int) -> None:
        self.max_answer_length = max_answer_length

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean of both cross-entropies of each row."""
        starts, ends = self._logits(outputs, targets)
        of_starts = F.cross_entropy(starts, targets[:, 0], reduction="none")
        return (of_starts + F.cross_entropy(ends, targets[:, 1], reduction="none")) / 2

    def predictions(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the first and the last token of the best span of each row, (n_rows, 2)."""
        found = best_spans(*self._logits(outputs, targets), self.max_answer_length, 1)
        no_answer, best, span = found[:, 0], found[:, 2], found[:, 3:5]
        return torch.where((no_answer > best)[:, None], 0.0, span)

    def _logits(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        starts, ends = pad_logits(outputs, targets[:, 4])
        return mask_outside(starts, targets[:, 2], targets[:, 3]), mask_outside(
            ends, targets[:, 2], targets[:, 3]
        )

    def score(self, predictions: np.ndarray, targets: np.ndarray, row_weights: np.ndarray) -> float:
        """Return the weighted share of rows whose span is exact."""
        return float(np.average((predictions == targets[:, :2]).all(axis=1), weights=row_weights))
