"""Loaded models: one per process, checkpoint and way to compute, however many estimators."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch

from ..checkpoints import Checkpoint
from .hardware import Compute
from .packed_model import PackedModel, TunedWeights, fused_weights, replaced_weights
from .sentence_transformers_model import SentenceTransformersModel
from .streaming import StreamingModel

_MAX_MODELS = 4
_models: OrderedDict[tuple, StreamingModel | SentenceTransformersModel] = OrderedDict()
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


def get_model(checkpoint: Checkpoint, compute: Compute) -> StreamingModel | SentenceTransformersModel:
    """Return the loaded model of a checkpoint.

    Raises
    ------
    ValueError
        Another architecture than BERT's was asked of OpenVINO.
    ImportError
        OpenVINO was asked for and is not installed.
    OSError
        The weights are not complete.
    """

    def build() -> StreamingModel | SentenceTransformersModel:
        if checkpoint.read_weights is None:
            if compute.backend != "torch":
                raise ValueError(
                    f"backend={compute.backend!r} needs a BERT-shaped checkpoint; {checkpoint.name!r} runs "
                    f"through sentence-transformers because {checkpoint.foreign_reason}: use backend='torch'."
                )
            return SentenceTransformersModel(checkpoint, compute.device, compute.dtype)
        if compute.backend == "openvino":
            from .openvino_model import OpenVINOModel

            weights = dict(read_weights(checkpoint, torch.float32))
            return OpenVINOModel(checkpoint, weights, compute.precision, compute.calibration)
        weights = read_weights(checkpoint, compute.dtype)
        return PackedModel(checkpoint, weights, compute.device, compute.dtype)

    return get_or_build((checkpoint.fingerprint, compute), build)


def get_tuned_model(checkpoint: Checkpoint, compute: Compute, tuned: TunedWeights) -> PackedModel:
    """Return the loaded model of a checkpoint that was fine-tuned."""

    def build() -> PackedModel:
        weights = replaced_weights(read_weights(checkpoint, compute.dtype), tuned)
        return PackedModel(checkpoint, weights, compute.device, compute.dtype)

    return get_or_build((checkpoint.fingerprint, compute, tuned.digest), build)


def new_trainable_model(checkpoint: Checkpoint, device: torch.device) -> PackedModel:
    """Return a model in float32 that nobody else holds."""
    weights = read_weights(checkpoint, torch.float32)
    return PackedModel(checkpoint, weights, device, torch.float32, trainable=True)


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the fused weights of a BERT-shaped checkpoint one by one, the layers' in `dtype`.

    Raises
    ------
    OSError
        They are damaged or not complete.
    """
    try:
        yield from fused_weights(checkpoint.read_weights(), checkpoint.config, dtype)
    except KeyError as error:
        raise OSError(
            f"The weights of {checkpoint.name} lack {error}. Download the checkpoint again."
        ) from error


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
