"""The training loop: steps, epochs, validation, what survives an interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from ..engine.hardware import is_out_of_memory
from ..engine.interrupts import deferred_interrupts
from ..engine.packing import to_device
from .contract import Split, TrainingDivergedError, TrainingHooks, TrainingOptions, TrainingResult
from .networks import TrainableNetwork
from .objectives import Objective
from .parameters import FlatParameters, LossScale, norm
from .workers import Workers

_MAX_GRADIENT_NORM = 1.0
_TEXTS_TO_TRY = 4  # weights on, in next to no time beside an epoch
_CHUNK = 1 << 20

Refit = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Score = Callable[[np.ndarray], float]
Result = TypeVar("Result")


def train(
    network: TrainableNetwork,
    coef: np.ndarray,
    intercept: np.ndarray,
    objective: Objective,
    targets: np.ndarray,
    row_weights: np.ndarray,
    split: Split,
    options: TrainingOptions,
    *,
    workers: Workers | None = None,
    hooks: TrainingHooks | None = None,
    refit: Refit | None = None,
    score: Score | None = None,
) -> TrainingResult:
    """Train a network and a linear head over its vectors.

    AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101), linear warm-up and
    decay, gradients clipped to norm 1.

    Parameters
    ----------
    network : TrainableNetwork
    coef, intercept : ndarray of float32
        Where the head starts.
    objective : Objective
    targets : ndarray
        Of all texts, as `objective` takes them.
    row_weights : ndarray of float, shape (n_texts,)
    split : Split
    options : TrainingOptions
    workers : Workers, default=None
        Processes that train together; None: this one alone.
    hooks : TrainingHooks, default=None
    refit : callable, default=None
        Called at the end with the vectors of the training texts, float32
        (n_training, hidden_size); returns another head for the trained
        network. Where training is stopped by validation, it has to be as good.
    score : callable, default=None
        Takes the outputs of the validation texts, float32 (n_validation, n_outputs);
        returns what they are compared by. None: the score of `objective`.

    Raises
    ------
    TrainingDivergedError
        The loss or a weight is not finite any more.
    """
    with torch.enable_grad():
        training = _Training(
            network,
            coef,
            intercept,
            objective,
            targets,
            row_weights,
            split,
            options,
            workers or Workers(),
            score,
        )
        return training.run(hooks or _NoHooks(), refit)


class _NoHooks:
    """Where nobody wants to know."""

    def begin_epoch(self) -> None: ...

    def end_step(self, n_texts: int, loss: float) -> None: ...

    def end_epoch(self, result: Callable[[], TrainingResult]) -> bool:
        return False


class _Training:
    def __init__(
        self, network, coef, intercept, objective, targets, row_weights, split, options, workers, score
    ) -> None:
        self._network: TrainableNetwork = network
        self._objective: Objective = objective
        self._split: Split = split
        self._options: TrainingOptions = options
        self._workers: Workers = workers
        self._score: Score | None = score
        device = network.device
        start = {
            "coef": torch.from_numpy(np.array(coef)).to(device),
            "intercept": torch.from_numpy(np.array(intercept)).to(device),
        }
        self._head = FlatParameters(start, torch.float32, options.head_learning_rate)
        self._parameters = [*network.parameters, self._head]
        self._numpy_targets, self._numpy_weights = targets, row_weights
        self._targets = torch.from_numpy(targets).to(device)
        self._weights = torch.from_numpy(row_weights.astype(np.float32)).to(device)
        self._loss_scale = LossScale(options.loss_scaling)
        self._mean_weight = float(row_weights[split.training].mean())
        self._steps_per_epoch = math.ceil(len(split.training) / options.batch_size)
        self._n_steps = self._steps_per_epoch * options.epochs
        self._step = 0
        if workers.world_size > 1:  # vectors may differ by rounding, and so does where the head starts
            for part in self._parameters:
                workers.broadcast(part.master)
                part.publish()
        self._history: list[dict[str, float]] = []
        self._kept: list[torch.Tensor] | None = None  # parameters of the best epoch, or of the last
        self._kept_epoch = 0

    def run(self, hooks: TrainingHooks, refit: Refit | None) -> TrainingResult:
        patience = self._options.n_iter_no_change
        ranks = []
        if patience is not None:
            ranks.append(_rank(*self._validate()))
            self._keep(0)
        shuffle = np.random.RandomState(self._options.seed)
        interrupted = False
        try:
            for epoch in range(1, self._options.epochs + 1):
                hooks.begin_epoch()
                self._run_epoch(shuffle, hooks)
                if patience is None:
                    self._keep(epoch)
                else:
                    last = self._history[-1]
                    ranks.append(_rank(last["validation_loss"], last["validation_score"]))
                    if ranks[-1] > max(ranks[:-1]):
                        self._keep(epoch)
                stops = hooks.end_epoch(self._result)
                if self._of_first_worker(stops)[0] or (patience is not None and should_stop(ranks, patience)):
                    break
        except KeyboardInterrupt:
            interrupted = True
            if patience is None and self._is_finite():  # what the steps of this epoch have learned counts
                self._keep(len(self._history))
        except TrainingDivergedError as error:
            error.last_good = self._result() if self._history else None
            raise
        try:
            for part in self._parameters:  # before the results take memory
                part.release_steps()
            if refit and self._kept_epoch and not interrupted:
                self._refit(refit, max(ranks, default=None))
            return self._result(interrupted=interrupted)
        except KeyboardInterrupt:  # what was trained is kept, with its own head where it was not fitted anew
            return self._result(interrupted=True)

    def _refit(self, refit: Refit, best: tuple[float, float] | None) -> None:
        """Fit the head anew to the vectors of the trained network."""
        self._load(self._kept)
        for part in self._parameters:
            part.publish()
        vectors = self._in_parts_that_fit(self._training_vectors)
        vectors = vectors[self._split.training]
        if not np.isfinite(vectors).all():
            raise self._diverged("What the weights make of a text became infinite or NaN")
        coef, intercept = refit(vectors)
        values = np.concatenate([coef.ravel(), intercept.ravel()]).astype(np.float32)
        with torch.no_grad():
            self._head.master.copy_(torch.from_numpy(values))
        self._workers.broadcast(self._head.master)
        if best is None or _rank(*self._validate()) >= best:
            self._keep(self._kept_epoch)

    def _training_vectors(self) -> np.ndarray:
        vectors = np.empty((len(self._targets), self._head.views["coef"].shape[1]), np.float32)
        with torch.no_grad():
            for rows, some in self._network.vectors(self._split.training):
                vectors[rows] = some.float().cpu().numpy()
        return vectors

    def _run_epoch(self, shuffle: np.random.RandomState, hooks: TrainingHooks) -> None:
        began = time.perf_counter()
        loss_sum, weight_sum = 0.0, 0.0
        order = shuffle.permutation(self._split.training)
        for batch in _batches(order, self._options.batch_size):
            loss, weight = self._run_step(batch)
            loss_sum += loss * weight
            weight_sum += weight
            hooks.end_step(len(batch), loss)
        if not self._is_finite():
            raise self._diverged("The weights, or what they make of a text, became infinite or NaN")
        seconds = time.perf_counter() - began
        record = {
            "loss": loss_sum / max(weight_sum, 1e-12),
            "learning_rate": self._options.head_learning_rate * self._rate(),
            "seconds": seconds,
            "texts_per_s": len(order) / seconds,
        }
        if self._network.parameters:
            record["learning_rate"] = self._network.parameters[0].learning_rate * self._rate()
        if len(self._split.validation):
            record["validation_loss"], record["validation_score"] = self._validate()
        self._history.append(record)

    def _run_step(self, batch: np.ndarray) -> tuple[float, float]:
        rate = self._rate()
        self._step += 1
        weight = float(self._numpy_weights[batch].sum())
        total = len(batch) * self._mean_weight  # not the batch's own sum: weights count between batches too
        loss = self._in_parts_that_fit(lambda: self._backward(self._workers.share(batch), total))
        gradients = [part.take_gradients() for part in self._parameters]
        loss, gradients = self._add_up(loss, gradients)
        if not math.isfinite(loss):
            raise self._diverged(f"The loss became {loss}")
        length = norm(chain.from_iterable(gradients)) / self._loss_scale.value
        scale = min(1.0, _MAX_GRADIENT_NORM / (length + 1e-6)) / self._loss_scale.value
        overflowed = not math.isfinite(length)
        self._loss_scale.update(overflowed)
        if not overflowed:
            for part, some in zip(self._parameters, gradients, strict=True):
                part.step(some, rate, scale)
        elif not self._loss_scale.may_recover:
            raise self._diverged("The gradient became infinite or NaN")
        return loss / max(weight, 1e-12), weight

    def _in_parts_that_fit(self, compute: Callable[[], Result]) -> Result:
        """Return what `compute` returns; where memory is too small it begins again with smaller parts."""
        while True:
            try:
                return compute()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if not self._network.shrink_parts():
                    raise MemoryError(
                        f"One text of a step does not fit in the memory of {self._network.device}. Free memory "
                        "there, or use gradient_checkpointing=True, a lower max_length or device='cpu'."
                    ) from error
            # Outside of the handler, which holds on to the tensors of the failed attempt.
            self._clear_gradients()
            if self._network.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, batch: np.ndarray, total_weight: float) -> float:
        """Add up the gradients of the parts of a step; return its sum of weighted losses."""
        parts = []
        for rows, outputs in self._outputs(batch):
            losses = self._objective.losses(outputs, self._targets[rows])
            loss = (losses * self._weights[rows]).sum()
            (loss * (self._loss_scale.value / total_weight)).backward()
            parts.append(loss.detach())
        return sum(map(float, parts))  # read at the end: for each number the host waits for a GPU

    def _add_up(
        self, loss: float, gradients: list[list[torch.Tensor]]
    ) -> tuple[float, list[list[torch.Tensor]]]:
        """Add the losses and the gradients of all workers."""
        if self._workers.world_size == 1:
            return loss, gradients
        total = torch.tensor([loss], dtype=torch.float64, device=self._network.device)
        gradients = [[gradient.float() for gradient in some] for some in gradients]
        self._workers.all_reduce([total, *chain.from_iterable(gradients)])
        return float(total), gradients

    def _of_first_worker(self, *numbers: float) -> list[float]:
        """Return the first worker's numbers, so that all decide alike."""
        if self._workers.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self._network.device)
        self._workers.broadcast(values)
        return values.tolist()

    def _outputs(self, rows: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part, vectors in self._network.vectors(rows):
            outputs = F.linear(vectors, self._head.views["coef"], self._head.views["intercept"])
            yield to_device(part, self._network.device), outputs

    def _validate(self) -> tuple[float, float]:
        """Return loss and score of the validation texts."""
        rows, losses, predictions = self._in_parts_that_fit(self._predict_validation)
        weights = self._numpy_weights[rows]
        loss = float(np.average(losses, weights=weights))
        if self._score:
            score = self._score(predictions[np.argsort(rows)])
        else:
            score = self._objective.score(predictions, self._numpy_targets[rows], weights)
        loss, score = self._of_first_worker(loss, score)
        return loss, score

    def _predict_validation(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order, losses, predictions = [], [], []
        with torch.no_grad():
            for part, outputs in self._outputs(self._split.validation):
                targets = self._targets[part]
                order.append(part.cpu().numpy())
                losses.append(self._objective.validation_losses(outputs, targets).cpu().numpy())
                predictions.append(self._objective.predictions(outputs, targets).float().cpu().numpy())
        return np.concatenate(order), np.concatenate(losses), np.concatenate(predictions)

    def _rate(self) -> float:
        return learning_rate_factor(self._step, self._n_steps, self._options.warmup_ratio)

    def _is_finite(self) -> bool:
        """Tell whether the weights are finite, and what they make of a few texts, which large weights may not be."""
        if not all(part.is_finite() for part in self._parameters):
            return False
        return self._in_parts_that_fit(self._compute_a_few)

    def _compute_a_few(self) -> bool:
        with torch.no_grad():
            outputs = [some for _, some in self._outputs(self._split.training[:_TEXTS_TO_TRY])]
        return all(bool(some.isfinite().all()) for some in outputs)

    def _clear_gradients(self) -> None:
        for part in self._parameters:
            part.clear_gradients()

    def _keep(self, epoch: int) -> None:
        with deferred_interrupts():  # never parts of two epochs
            self._kept_epoch = epoch
            if self._kept is None:
                self._kept = [part.master.detach().clone() for part in self._parameters]
            else:
                for copy, part in zip(self._kept, self._parameters, strict=True):
                    copy.copy_(part.master.detach())

    @deferred_interrupts()  # between the two exchanges the parameters are not those that are trained
    def _result(self, *, interrupted: bool = False) -> TrainingResult:
        try:
            if self._kept is not None:
                self._exchange(self._kept)
            head = self._head.arrays()
            return TrainingResult(
                head["coef"],
                head["intercept"],
                self._network.arrays(),
                [dict(record) for record in self._history],
                self._kept_epoch,
                interrupted,
            )
        finally:
            if self._kept is not None:
                self._exchange(self._kept)

    def _exchange(self, values: list[torch.Tensor]) -> None:
        """Exchange the parameters with others, without a third copy of all of them."""
        with torch.no_grad(), deferred_interrupts():
            for part, value in zip(self._parameters, values, strict=True):
                for mine, other in zip(part.master.split(_CHUNK), value.split(_CHUNK), strict=True):
                    before = mine.clone()
                    mine.copy_(other)
                    other.copy_(before)

    def _load(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for part, value in zip(self._parameters, values, strict=True):
                part.master.copy_(value)

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} in step {self._step} of {self._n_steps}. Use a lower learning_rate or head_learning_rate, "
            "or precision='fp32'."
        )


def _rank(loss: float, score: float) -> tuple[float, float]:
    return score, -loss


def should_stop(ranks: list, patience: int) -> bool:
    """Tell whether none of the last `patience` values is better than the best before them."""
    return len(ranks) > patience and max(ranks[-patience:]) <= max(ranks[:-patience])


def _batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def learning_rate_factor(step: int, n_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up from 0, then linear decay to 0."""
    warmup = warmup_ratio * n_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (n_steps - step) / max(1.0, n_steps - warmup))
