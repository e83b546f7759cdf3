"""The weights of a checkpoint under the names of this package; its embedding table once per process and device."""

from __future__ import annotations

import os
import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping

import torch
from torch.utils.weak import TensorWeakRef

from ..checkpoints import Checkpoint
from ..checkpoints.checkpoint import WORD_EMBEDDINGS
from .weights import TunedWeights, fused_weights, replaced_weights

# By fingerprint and device, as long as a model holds one: four fifths of a checkpoint, and nothing writes to it.
_word_tables: dict[tuple[str, torch.device], TensorWeakRef] = {}
_lock = threading.RLock()
_CPU = torch.device("cpu")


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def read_fused_weights(
    checkpoint: Checkpoint, device: torch.device = _CPU, *, first_layer: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the fused weights of a BERT-shaped checkpoint one by one.

    The embedding table is on `device` and shared with other models: not to be
    changed. From a `first_layer` other than 0 on, there are no embeddings.

    Raises
    ------
    OSError
        They are damaged or not complete.
    """
    try:
        weights = checkpoint.read_weights()
        if first_layer == 0:
            table = _shared_word_table(checkpoint, weights, device)
            weights = ChainMap({WORD_EMBEDDINGS: table}, weights)  # type: ignore[arg-type]  # it is only read
        yield from fused_weights(weights, checkpoint.config, first_layer)
    except KeyError as error:
        raise OSError(
            f"The weights of {checkpoint.name} lack {error}. Download the checkpoint again."
        ) from error
    except ValueError as error:
        raise OSError(
            f"The weights of {checkpoint.name} are unusable: {error}. Download the checkpoint again."
        ) from error


def _shared_word_table(
    checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], device: torch.device
) -> torch.Tensor:
    key = checkpoint.fingerprint, device
    with _lock:
        table = _word_tables[key]() if key in _word_tables else None
        if table is None:
            table = weights[WORD_EMBEDDINGS].to(device)
            _word_tables[key] = TensorWeakRef(table)
        return table


def read_trainable_weights(
    checkpoint: Checkpoint, n_frozen_layers: int, tuned: TunedWeights | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read weights in float32 to train on: of the layers above the frozen ones, or all if none is frozen."""
    weights = read_fused_weights(checkpoint, first_layer=n_frozen_layers)
    # Adapters go on as adapters: they are not merged.
    return replaced_weights(weights, tuned) if tuned and not tuned.has_adapters else weights
