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
from .engine.packing import Pack
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
    parameters = _trained_copies(model.weights, frozen_layers, options.trainable == "all")
    word_rows = None
    if WORD in parameters:
        # Only rows that occur in the texts get a gradient, so only they are trained.
        word_rows, compact_ids = np.unique(batch.input_ids, return_inverse=True)
        rows = torch.from_numpy(word_rows.astype(np.int64)).to(model.device)
        parameters[WORD] = dense_rows(model.weights[WORD], rows)
        batch = TokenBatch(compact_ids.astype(np.int32), batch.lengths, batch.full_lengths)
    frozen = {name: tensor for name, tensor in model.weights.items() if name not in parameters}
    frozen = {name: _cast(name, tensor, dtype) for name, tensor in frozen.items()}

    def vectors_of(rows: np.ndarray, offsets: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        pack: Pack = model.make_training_pack(batch, offsets, rows)
        weights = {**frozen, **{name: _cast(name, p, dtype) for name, p in parameters.items()}}
        hidden = model.hidden_states(
            pack, weights, frozen_layers=frozen_layers, frozen_embeddings=WORD not in parameters
        )
        return unit_length(pool(hidden, pack, options.pooling)), pack.rows

    result = _train(vectors_of, batch.offsets, parameters, codes, row_weights, coef, intercept, options,
                    model.device, progress)  # fmt: skip
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

    def vectors_of(rows: np.ndarray, offsets: np.ndarray | None) -> tuple[torch.Tensor, np.ndarray]:
        return fixed[torch.from_numpy(rows).to(device)], rows

    return _train(vectors_of, None, {}, codes, row_weights, coef, intercept, options, device, progress)


def _train(
    vectors_of, offsets, parameters, codes, row_weights, coef, intercept, options, device, progress
) -> TrainingResult:
    head_weight = torch.tensor(coef, dtype=torch.float32, device=device)
    head_bias = torch.tensor(intercept, dtype=torch.float32, device=device)
    trained = [*parameters.values(), head_weight, head_bias]
    for parameter in trained:
        parameter.requires_grad_(True)
    targets = torch.from_numpy(codes).to(device)
    weights = torch.from_numpy(row_weights.astype(np.float32)).to(device)
    optimizer = torch.optim.AdamW(
        _parameter_groups(parameters, head_weight, head_bias, options), betas=(0.9, 0.999), fused=True
    )
    steps_per_epoch = -(-len(codes) // options.batch_size)
    n_steps = steps_per_epoch * options.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, n_steps, options.warmup_ratio)
    )
    shuffle = np.random.RandomState(options.seed)
    history = []
    for epoch in range(options.epochs):
        began, loss_sum, weight_sum = time.perf_counter(), 0.0, 0.0
        for step, rows in enumerate(_batches(shuffle.permutation(len(codes)), options.batch_size)):
            vectors, rows = vectors_of(rows, offsets)
            logits = F.linear(vectors, head_weight, head_bias)
            losses = F.cross_entropy(
                logits, targets[rows], reduction="none", label_smoothing=options.label_smoothing
            )
            total = weights[rows].sum()
            loss = (losses * weights[rows]).sum() / total.clamp_min(1e-12)
            loss_value = float(loss.detach())
            if not np.isfinite(loss_value):
                raise FloatingPointError(
                    f"The loss became {loss_value} in step {epoch * steps_per_epoch + step + 1} of {n_steps}. "
                    "Use a lower learning_rate or head_learning_rate, or precision='fp32'."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            loss_sum += loss_value * float(total)
            weight_sum += float(total)
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

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().numpy().copy()

    arrays = {name: array(parameter) for name, parameter in parameters.items()}
    return TrainingResult(array(head_weight), array(head_bias), arrays, history)


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


def _trained_copies(
    weights: Mapping[str, torch.Tensor], frozen_layers: int, embeddings: bool
) -> dict[str, torch.Tensor]:
    """Return copies of what training may change; the embedding table as a placeholder."""
    frozen_prefixes = tuple(layer_prefix(layer) for layer in range(frozen_layers))
    copies = {}
    for name, tensor in weights.items():
        in_embeddings = name.startswith("embeddings.")
        if name.startswith(frozen_prefixes) or (in_embeddings and not embeddings):
            continue
        copies[name] = tensor if name == WORD else tensor.detach().clone()
    return copies


def _parameter_groups(
    parameters: Mapping[str, torch.Tensor],
    head_weight: torch.Tensor,
    head_bias: torch.Tensor,
    options: TrainingOptions,
) -> list[dict]:
    """Weight decay on the layers' matrices only: not on biases, norms, embeddings and the head."""
    decayed = [p for name, p in parameters.items() if p.ndim == 2 and not name.startswith("embeddings.")]
    others = [p for name, p in parameters.items() if p.ndim != 2 or name.startswith("embeddings.")]
    groups = [
        {"params": decayed, "lr": options.learning_rate, "weight_decay": options.weight_decay},
        {"params": others, "lr": options.learning_rate, "weight_decay": 0.0},
        {"params": [head_weight, head_bias], "lr": options.head_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if name.startswith("layers.") else tensor
