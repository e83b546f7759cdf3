"""A checkpoint inside a fitted estimator, so that nothing else is needed where it is opened."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from .checkpoint import (
    BertConfig,
    Checkpoint,
    EncodingSettings,
    LazyWeights,
)
from .digests import arrays_digest, combine_digests
from .tokenizer import restore_tokenizer

if TYPE_CHECKING:
    import torch


def check_embeddable(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that :func:`embed_checkpoint` cannot take in.

    Raises
    ------
    ValueError
        It has another architecture than BERT's.
    """
    if checkpoint.foreign_reason:
        raise ValueError(
            f"save_weights='full' needs a BERT-shaped checkpoint: {checkpoint.name!r} runs through "
            f"sentence-transformers because {checkpoint.foreign_reason}."
        )


def embed_checkpoint(
    checkpoint: Checkpoint, model: str | os.PathLike[str], revision: str | None
) -> dict[str, Any]:
    """Return a whole BERT-shaped checkpoint as a dict of arrays, numbers and str.

    Parameters
    ----------
    checkpoint : Checkpoint
    model, revision :
        What it was opened by, for :func:`is_embedded`.
    """
    weights = checkpoint.read_weights()
    kind, tokenizer = checkpoint.tokenizer.state()
    state = {
        "name": os.fspath(model),
        "revision": revision,
        "fingerprint": checkpoint.origin,
        "config": asdict(checkpoint.config),
        "defaults": asdict(checkpoint.defaults),
        "tokenizer_kind": kind,
        "tokenizer": np.frombuffer(tokenizer, np.uint8).copy(),
        "weights": {name: _to_array(weights[name]) for name in weights},
    }
    return {**state, "digest": content_digest(state)}


def content_digest(state: Mapping[str, Any]) -> str:
    """Return the sha256 of all that the vectors depend on: what a file says of itself proves nothing."""
    parts = {name: state[name] for name in ("config", "defaults", "tokenizer_kind")}
    arrays = {**state["weights"], "tokenizer": np.asarray(state["tokenizer"])}
    return combine_digests({"embedded": arrays_digest(arrays), **parts})


def is_embedded(state: Mapping[str, Any], model: str | os.PathLike[str], revision: str | None) -> bool:
    """Tell whether a state of :func:`embed_checkpoint` was opened by `model` and `revision`."""
    # Earlier versions did not keep the revision: then it counts as the same.
    return state["name"] == os.fspath(model) and state.get("revision", revision) == revision


# As long as an estimator uses one, and no longer: it holds on to the arrays.
_opened: WeakValueDictionary[str, Checkpoint] = WeakValueDictionary()


def open_embedded(state: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that :func:`embed_checkpoint` took in, opened once per process."""
    digest = state.get("digest") or content_digest(state)  # which earlier versions did not keep
    checkpoint = _opened.get(digest)
    if checkpoint is None:
        checkpoint = _opened[digest] = _open(state, digest)
    return checkpoint


def _open(state: Mapping[str, Any], digest: str) -> Checkpoint:
    readers = {name: functools.partial(_to_tensor, array) for name, array in state["weights"].items()}
    config = BertConfig(**state["config"])
    tokenizer_state = np.array(state["tokenizer"]).tobytes()
    return Checkpoint(
        name=state["name"],
        fingerprint=digest,
        copy_of=state["fingerprint"],
        hidden_size=config.hidden_size,
        defaults=EncodingSettings(**state["defaults"]),
        config=config,
        tokenizer=restore_tokenizer(state["tokenizer_kind"], tokenizer_state, config.vocab_size),
        read_weights=lambda: LazyWeights(readers),
    )


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(array))  # a copy: the array may be a read-only memory map


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        tensor = tensor.float()
    return tensor.numpy().copy()
