"""The training loop: an encoder and a linear head over its pooled vectors. No scikit-learn here.

The head starts at a linear probe on the frozen vectors, then encoder and head
are trained together ("LP-FT", Kumar et al., 2022, arXiv:2202.10054).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from .checkpoints.tokenizer import TokenBatch
from .engine.packed_model import WORD, WORD_ROWS, PackedModel, dense_rows, layer_prefix
from .engine.pooling import pool, unit_length

_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the names are those of MiniLMClassifier."""

    trainable: str | int
    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    warmup_ratio: float
    label_smoothing: float
    pooling: str
    seed: int


@dataclass
class TrainingResult:
    """Arrays that training changed, and what happened on the way.

    Attributes
    ----------
    weights : dict of str to ndarray of float32
        Encoder weights by name; with ``trainable="all"`` the rows of the
        embedding table that occur in the texts, and their numbers (int64).
    coef : ndarray of float32, shape (n_classes, hidden_size)
    intercept : ndarray of float32, shape (n_classes,)
    history : list of dict
        One a epoch: loss, learning_rate (at its end), seconds, texts_per_s.
    """

    coef: np.ndarray
    intercept: np.ndarray
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def fine_tune(
    model: PackedModel,
    batch: TokenBatch,
    codes: np.ndarray,
    row_weights: np.ndarray,
    coef: np.ndarray,
    intercept: np.ndarray,
    options: TrainingOptions,
    dtype: torch.dtype,
    progress: Callable[[int, float], object] | None = None,
) -> TrainingResult:
    """Train the encoder's top layers (or all of it) and the head.

    Parameters
    ----------
    model : PackedModel
        In float32; it is not changed.
    batch : TokenBatch
        The texts.
    codes : ndarray of int64, shape (n_texts,)
        Classes, from 0.
    row_weights : ndarray of float, shape (n_texts,)
    coef, intercept : ndarray
        Where the head starts.
    options : TrainingOptions
    dtype : torch.dtype
        Of the computation; parameters and optimizer stay in float32.
    progress : callable, optional
        Called with the texts of each step and its loss.
    """
    frozen_layers = _frozen_layers(options.trainable, model.config.num_hidden_layers)
    trained = _select_trained(model.weights, frozen_layers, embeddings=options.trainable == "all")
    frozen = {name: _cast(name, model.weights[name], dtype) for name in model.weights if name not in trained}
    word_rows = None
    if WORD in trained:
        # Only rows that occur in the texts get a gradient, so only they are trained.
        word_rows, compact_ids = np.unique(batch.input_ids, return_inverse=True)
        rows = torch.from_numpy(word_rows.astype(np.int64)).to(model.device)
        trained[WORD] = dense_rows(model.weights[WORD], rows)
        batch = TokenBatch(compact_ids.astype(np.int32), batch.lengths, batch.full_lengths)
    matrices = {n: t for n, t in trained.items() if _is_layer(n) and t.ndim == 2}
    biases_and_norms = {n: t for n, t in trained.items() if _is_layer(n) and t.ndim == 1}
    embeddings = {n: t for n, t in trained.items() if not _is_layer(n)}
    rate = options.learning_rate
    parts = [
        FlatParameters(matrices, dtype, rate, options.weight_decay),
        FlatParameters(biases_and_norms, dtype, rate),
    ]
    if embeddings:
        parts.append(FlatParameters(embeddings, torch.float32, rate))
    views = {name: view for part in parts for name, view in part.views.items()}
    offsets = batch.offsets

    def vectors_of(rows: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        pack = model.make_training_pack(batch, offsets, rows)
        hidden = model.hidden_states(
            pack, {**frozen, **views}, frozen_layers=frozen_layers, frozen_embeddings=not embeddings
        )
        return unit_length(pool(hidden, pack, options.pooling)), pack.rows

    result = _train(vectors_of, parts, codes, row_weights, coef, intercept, options, model.device, progress)
    for part in parts:
        result.weights.update(part.arrays())
    if word_rows is not None:
        result.weights[WORD_ROWS] = word_rows.astype(np.int64)
    return result


def train_head(
    vectors: np.ndarray,
    codes: np.ndarray,
    row_weights: np.ndarray,
    coef: np.ndarray,
    intercept: np.ndarray,
    options: TrainingOptions,
    device: torch.device,
    progress: Callable[[int, float], object] | None = None,
) -> TrainingResult:
    """Train the head alone, over vectors computed once. See :func:`fine_tune`."""
    fixed = torch.from_numpy(vectors).to(device)

    def vectors_of(rows: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        return fixed[torch.from_numpy(rows).to(device)], rows

    return _train(vectors_of, [], codes, row_weights, coef, intercept, options, device, progress)


class FlatParameters:
    """Parameters side by side in one float32 vector, with views in the precision of the computation.

    A step of the optimizer, the gradients' norm and the casts are one call
    each instead of one for each of a hundred tensors.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Where they start; copied.
    dtype : torch.dtype
        Of the views.
    learning_rate, weight_decay : float
        For the optimizer.

    Attributes
    ----------
    master : Tensor of float32, shape (n,)
        What the optimizer changes; its gradient is float32 too.
    views : dict of str to Tensor
        The parameters by name, leaves of the computation.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.master = torch.cat([tensor.detach().float().flatten() for tensor in tensors.values()])
        self.master.grad = torch.zeros_like(self.master)
        same = dtype == torch.float32
        self._computed = self.master if same else self.master.to(dtype)
        self._gradient = self.master.grad if same else torch.zeros_like(self._computed)
        self.views = {}
        gradients = self._split(self._gradient)
        for name, values in self._split(self._computed).items():
            self.views[name] = values.detach().requires_grad_(True)
            self.views[name].grad = gradients[name]

    def _split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def collect_gradient(self) -> None:
        """Bring the gradient of the views into `master.grad`."""
        if self._gradient is not self.master.grad:
            self.master.grad.copy_(self._gradient)

    def publish(self) -> None:
        """Bring a changed `master` into the views and clear the gradient."""
        if self._computed is not self.master:
            with torch.no_grad():
                self._computed.copy_(self.master)
        self._gradient.zero_()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters as float32 arrays of their own."""
        return {name: part.cpu().numpy().copy() for name, part in self._split(self.master).items()}


@torch.enable_grad()
def _train(
    vectors_of: Callable[[np.ndarray], tuple[torch.Tensor, np.ndarray]],
    encoder: list[FlatParameters],
    codes: np.ndarray,
    row_weights: np.ndarray,
    coef: np.ndarray,
    intercept: np.ndarray,
    options: TrainingOptions,
    device: torch.device,
    progress: Callable[[int, float], object] | None,
) -> TrainingResult:
    head_start = {
        "coef": torch.from_numpy(coef).to(device),
        "intercept": torch.from_numpy(intercept).to(device),
    }
    head = FlatParameters(head_start, torch.float32, options.head_learning_rate)
    parts = [*encoder, head]
    targets = torch.from_numpy(codes).to(device)
    weights = torch.from_numpy(row_weights.astype(np.float32)).to(device)
    groups = [{"params": [p.master], "lr": p.learning_rate, "weight_decay": p.weight_decay} for p in parts]
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps_per_epoch = -(-len(codes) // options.batch_size)
    n_steps = steps_per_epoch * options.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, n_steps, options.warmup_ratio)
    )
    shuffle = np.random.RandomState(options.seed)
    history = []
    for epoch in range(options.epochs):
        began, loss_sum, weight_sum = time.perf_counter(), 0.0, 0.0
        batches = _batches(shuffle.permutation(len(codes)), options.batch_size)
        for step, rows in enumerate(batches, epoch * steps_per_epoch + 1):
            vectors, rows = vectors_of(rows)
            logits = F.linear(vectors, head.views["coef"], head.views["intercept"])
            losses = F.cross_entropy(
                logits, targets[rows], reduction="none", label_smoothing=options.label_smoothing
            )
            total = float(weights[rows].sum())
            loss = (losses * weights[rows]).sum() / max(total, 1e-12)
            loss_value = float(loss.detach())
            if not np.isfinite(loss_value):
                raise _diverged(f"The loss became {loss_value}", step, n_steps)
            loss.backward()
            for part in parts:
                part.collect_gradient()
            torch.nn.utils.clip_grad_norm_([part.master for part in parts], _MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            for part in parts:
                part.publish()
            loss_sum += loss_value * total
            weight_sum += total
            if progress:
                progress(len(rows), loss_value)
        seconds = time.perf_counter() - began
        history.append(
            {
                "loss": loss_sum / max(weight_sum, 1e-12),
                "learning_rate": float(schedule.get_last_lr()[0]),
                "seconds": seconds,
                "texts_per_s": len(codes) / seconds,
            }
        )
    if not all(bool(part.master.isfinite().all()) for part in parts):
        raise _diverged("The weights became infinite or NaN", n_steps, n_steps)
    trained_head = head.arrays()
    return TrainingResult(trained_head["coef"], trained_head["intercept"], history=history)


def _diverged(what: str, step: int, n_steps: int) -> FloatingPointError:
    return FloatingPointError(
        f"{what} in step {step} of {n_steps}. Use a lower learning_rate or head_learning_rate, or "
        "precision='fp32'."
    )


def _batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _rate(step: int, n_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up from 0, then linear decay to 0."""
    warmup = warmup_ratio * n_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (n_steps - step) / max(1.0, n_steps - warmup))


def _frozen_layers(trainable: str | int, n_layers: int) -> int:
    if isinstance(trainable, str):
        return 0
    if trainable > n_layers:
        raise ValueError(f"trainable={trainable} is more than the {n_layers} layers of the checkpoint.")
    return n_layers - trainable


def _select_trained(
    weights: Mapping[str, torch.Tensor], frozen_layers: int, *, embeddings: bool
) -> dict[str, torch.Tensor]:
    """Return the weights that training may change."""
    frozen_prefixes = tuple(layer_prefix(layer) for layer in range(frozen_layers))
    return {
        name: tensor
        for name, tensor in weights.items()
        if (embeddings or _is_layer(name)) and not name.startswith(frozen_prefixes)
    }


def _is_layer(name: str) -> bool:
    return name.startswith("layers.")


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if _is_layer(name) else tensor
