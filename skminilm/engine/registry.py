"""Loaded models: one per process, checkpoint and way to compute, however many estimators."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from ..checkpoints import Checkpoint
from ._openvino_import import check_installed
from .hardware import Compute, return_free_memory
from .layer_states import ArrayCache, LayerStates, TopTunedModel
from .packed_model import PackedModel
from .replicated_model import ReplicatedModel
from .sentence_transformers_model import SentenceTransformersModel
from .streaming import StreamingModel
from .weight_reading import read_fused_weights
from .weights import WORD, TunedWeights, replaced_weights

Model = StreamingModel | SentenceTransformersModel
# Precisions and backends that are compared in turn have to fit: what is dropped is built anew at its next use.
_MAX_MODELS = 6
_models: OrderedDict[tuple, Model] = OrderedDict()
_lost_in_fork: list[Model] = []  # never freed: to end, they would wait for threads that are not there
_lock = threading.RLock()
_build_lock = threading.RLock()  # who wants a model that is there does not wait for one that is being built


def _after_fork() -> None:
    global _lock, _build_lock
    _lock, _build_lock = threading.RLock(), threading.RLock()
    for key, model in list(_models.items()):
        if not model.survives_fork:
            _lost_in_fork.append(_models.pop(key))
    # GNU OpenMP's threads do not survive a fork; a second parallel region would wait for them forever.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get_model(checkpoint: Checkpoint, compute: Compute) -> Model:
    """Return the loaded model of a checkpoint.

    Raises
    ------
    ValueError
        OpenVINO or integers cannot run this architecture.
    ImportError
        OpenVINO was asked for and is not installed.
    OSError
        The weights are not complete.
    """

    def build() -> Model:
        if checkpoint.foreign_reason:
            if compute.backend != "torch" or not compute.dtype.is_floating_point:
                is_torch = compute.backend == "torch"
                asked = f"precision={compute.precision!r}" if is_torch else f"backend={compute.backend!r}"
                raise ValueError(
                    f"{asked} needs a BERT-shaped checkpoint; {checkpoint.name!r} runs through "
                    f"sentence-transformers because {checkpoint.foreign_reason}: use backend='torch' with "
                    "another precision, such as 'auto'."
                )
            return SentenceTransformersModel(checkpoint, compute.device, compute.dtype)
        if compute.backend == "openvino":
            check_installed(compute.precision)  # before what imports them
            from .openvino_model import OpenVINOModel

            weights = dict(read_fused_weights(checkpoint))
            return OpenVINOModel(checkpoint, weights, compute.precision, compute.calibration)
        return _packed_model(checkpoint, compute)

    calibrated = checkpoint.defaults if compute.is_calibrated else None
    return get_or_build((checkpoint.fingerprint, compute, calibrated), build)


def get_tuned_model(
    checkpoint: Checkpoint, compute: Compute, tuned: TunedWeights | None, cache: ArrayCache
) -> Model:
    """Return the loaded model of a checkpoint that was fine-tuned; without `tuned` as :func:`get_model` does.

    Where only upper layers were, the output of those below is kept in `cache`,
    on a CPU.
    """
    if tuned is None:
        return get_model(checkpoint, compute)

    def build() -> StreamingModel:
        n_frozen = tuned.n_frozen_layers
        # A GPU computes the lower layers in less time than it takes to bring their output from the host.
        if n_frozen == 0 or compute.device.type == "cuda":
            return _packed_model(checkpoint, compute, tuned)
        states = new_layer_states(checkpoint, compute, n_frozen, cache)
        weights = replaced_weights(read_fused_weights(checkpoint, first_layer=n_frozen), tuned)
        return TopTunedModel(states, weights)

    return get_or_build((checkpoint.fingerprint, compute, None, tuned.digest), build)


def new_layer_states(
    checkpoint: Checkpoint, compute: Compute, n_layers: int, cache: ArrayCache
) -> LayerStates:
    """Return the output of the lowest layers of a checkpoint, kept in `cache`."""
    alone = replace(compute, helpers=())
    model = get_model(checkpoint, alone)
    return LayerStates(model, alone, n_layers, cache)  # type: ignore[arg-type]  # one device: a PackedModel


def _packed_model(
    checkpoint: Checkpoint, compute: Compute, tuned: TunedWeights | None = None
) -> PackedModel | ReplicatedModel:
    def on(device: torch.device) -> PackedModel:
        # Rows of a table that was trained are replaced where they come from, on the CPU.
        own_table = tuned is not None and WORD in tuned.arrays
        weights = read_fused_weights(checkpoint, torch.device("cpu") if own_table else device)
        if tuned:
            weights = replaced_weights(weights, tuned)
        return PackedModel(checkpoint, weights, device, compute.dtype)

    replicas = [on(compute.device), *_buildable(on, compute.helpers)]
    return ReplicatedModel(replicas) if len(replicas) > 1 else replicas[0]


def _buildable(
    build: Callable[[torch.device], PackedModel], devices: Sequence[torch.device]
) -> Iterator[PackedModel]:
    """Leave out devices that others use: they have no memory left, or are for one process alone."""
    for device in devices:
        try:
            model = build(device)
        except RuntimeError:
            model = None
        if model is not None:
            yield model
        else:  # outside of the handler, which holds on to the tensors of the failed attempt
            torch.cuda.empty_cache()


def get_or_build(key: tuple, build: Callable[[], Model]) -> Model:
    """Return the model under `key`, building it at first use and dropping the least recently used."""
    model = _find(key)
    if model is None:
        with _build_lock:
            model = _find(key)
            if model is None:
                model = build()
                with _lock:
                    while len(_models) >= _MAX_MODELS:
                        _models.popitem(last=False)
                    _models[key] = model
    return model


def _find(key: tuple) -> Model | None:
    with _lock:
        if key in _models:
            _models.move_to_end(key)
        return _models.get(key)


def release_models() -> None:
    """Drop all loaded models; see :func:`skminilm.release_models`."""
    with _lock:
        _models.clear()
    return_free_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None)  # torch >= 2.13
        if empty_host_cache:
            empty_host_cache()
