"""Loaded models: one per process and (checkpoint, device, precision), however many estimators."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch

from ..checkpoints import Checkpoint
from .packed_model import PackedModel, TunedWeights, fuse_weights
from .sentence_transformers_model import SentenceTransformersModel

_MAX_MODELS = 4
_models: OrderedDict[tuple, PackedModel | SentenceTransformersModel] = OrderedDict()
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for model in _models.values():
        if isinstance(model, SentenceTransformersModel):
            model.renew_lock()
    # GNU OpenMP's threads do not survive a fork; a second parallel region would wait for them forever.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> PackedModel | SentenceTransformersModel:
    """Return the loaded model of a checkpoint."""

    def build() -> PackedModel | SentenceTransformersModel:
        if checkpoint.read_weights is None:
            return SentenceTransformersModel(checkpoint, device, dtype)
        weights = checkpoint.read_weights()
        try:
            fused = fuse_weights(weights, checkpoint.config)
        except KeyError as error:
            raise OSError(
                f"The weights of {checkpoint.name} lack {error}. Download the checkpoint again."
            ) from error
        return PackedModel(checkpoint, fused, device, dtype)

    return get_or_build((checkpoint.fingerprint, str(device), dtype), build)


def get_tuned_model(base: PackedModel, tuned: TunedWeights) -> PackedModel:
    """Return `base` with some weights replaced; the others are shared with it."""
    key = (base.checkpoint.fingerprint, tuned.digest, str(base.device), base.dtype)
    return get_or_build(key, lambda: base.with_weights(tuned.arrays))


def get_or_build(key: tuple, build: Callable):
    """Return the model under `key`, building it at first use and dropping the least recently used."""
    with _lock:
        if key not in _models:
            model = build()
            while len(_models) >= _MAX_MODELS:
                _models.popitem(last=False)
            _models[key] = model
        _models.move_to_end(key)
        return _models[key]


def release_models() -> None:
    """Drop all loaded models; they are loaded again when needed."""
    with _lock:
        _models.clear()
