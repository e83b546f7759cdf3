"""The weights of a network under the names of this package: joined, tuned, compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..checkpoints import BertConfig
from ..checkpoints.checkpoint import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from ..checkpoints.q4 import BLOCK, BLOCK_BYTES, dequantize_q4

# Low-rank adapters: weight + LORA_SCALE * lora_B @ lora_A.
LORA_RANK = 8
LORA_SCALE = 2.0
_TYPE_EMBEDDINGS = "embeddings.token_type_embeddings.weight"
WORD, WORD_ROWS = "embeddings.word", "embeddings.word.rows"
# Of a layer, each with weight and bias, and what transformers' ``BertModel`` calls them.
LAYER_PARTS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}


def layer_prefix(layer: int) -> str:
    """Return how the names of a layer's weights begin."""
    return f"layers.{layer}."


def fused_weights(
    weights: Mapping[str, torch.Tensor], config: BertConfig, first_layer: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """Rename the weights of transformers' ``BertModel`` and join what is used together.

    Queries, keys and values become one matrix; the type embedding, which is
    type 0 for every token, is added to the positions. All but the word
    embeddings are in float32. One by one, so that no more than one is held
    twice where `weights` reads each when it is asked for. Layers below
    `first_layer`, and with them the embeddings, are not read.

    Raises
    ------
    KeyError
        A weight is missing.
    ValueError
        A weight has another shape than `config` says, or a number that is not finite.
    """
    size, wide = config.hidden_size, config.intermediate_size
    if first_layer == 0:
        yield from _fused_embeddings(weights, config)
    shapes = {"intermediate": (wide, size), "output": (size, wide)}
    for layer in range(first_layer, config.num_hidden_layers):
        old, new = f"encoder.layer.{layer}.", layer_prefix(layer)
        for kind in ("weight", "bias"):
            for part, old_parts in LAYER_PARTS.items():
                shape: tuple[int, ...] = shapes.get(part, (size, size))
                if kind == "bias" or part.endswith("norm"):
                    shape = shape[:1]
                tensors = [_checked(weights, f"{old}{old_part}.{kind}", shape) for old_part in old_parts]
                joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
                yield f"{new}{part}.{kind}", joined.float()


def _fused_embeddings(
    weights: Mapping[str, torch.Tensor], config: BertConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    size = config.hidden_size
    table = weights[WORD_EMBEDDINGS]
    shape: tuple[int, ...] = (config.vocab_size, size)
    if table.dtype == torch.uint8:
        shape = (config.vocab_size, size // BLOCK, BLOCK_BYTES)
    if table.shape != shape:
        raise ValueError(
            f"{WORD_EMBEDDINGS} has the shape {tuple(table.shape)}, and the configuration says {shape}"
        )
    yield WORD, table
    positions = (config.max_position_embeddings, size)
    position = _checked(weights, POSITION_EMBEDDINGS, positions).float()
    types = _checked(weights, _TYPE_EMBEDDINGS, (config.type_vocab_size, size))
    yield "embeddings.position", position + types[0].float()
    yield "embeddings.norm.weight", _checked(weights, "embeddings.LayerNorm.weight", (size,)).float()
    yield "embeddings.norm.bias", _checked(weights, "embeddings.LayerNorm.bias", (size,)).float()


def unfused_weights(
    weights: Iterable[tuple[str, torch.Tensor]], config: BertConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Undo :func:`fused_weights`, with the word embeddings in float32.

    The type embedding stays in the positions, so that the types are 0.
    """
    for name, tensor in weights:
        if name == WORD:
            yield WORD_EMBEDDINGS, dense_rows(tensor, slice(None))
        elif name == "embeddings.position":
            yield POSITION_EMBEDDINGS, tensor
            yield _TYPE_EMBEDDINGS, tensor.new_zeros(config.type_vocab_size, config.hidden_size)
        elif name.startswith("embeddings.norm."):
            yield name.replace("norm", "LayerNorm"), tensor
        else:
            _, layer, part, kind = name.split(".")
            old_parts = LAYER_PARTS[part]
            for old_part, piece in zip(old_parts, tensor.chunk(len(old_parts)), strict=True):
                yield f"encoder.layer.{layer}.{old_part}.{kind}", piece.clone()


def _checked(weights: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = weights[name]
    if tensor.shape != shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and the configuration says {shape}")
    if not all(
        map(math.isfinite, tensor.aminmax())
    ):  # in low precision it may come to a vector that looks right
        raise ValueError(f"{name} holds a number that is not finite")
    return tensor


def dense_rows(table: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """Return a copy of rows of an embedding table in float32, dequantised where it is in 4 bits."""
    selected = table[rows]
    return dequantize_q4(selected) if table.dtype == torch.uint8 else selected.float().clone()


@dataclass(frozen=True)
class TunedWeights:
    """What fine-tuning changed in an encoder.

    Attributes
    ----------
    arrays : mapping of str to ndarray
        Weights by name, and for the embedding table the changed rows
        (:data:`WORD`) and their numbers (:data:`WORD_ROWS`).
    digest : str
        Their :func:`~skminilm.checkpoints.digests.arrays_digest`.
    """

    arrays: Mapping[str, np.ndarray]
    digest: str

    @property
    def has_adapters(self) -> bool:
        """Whether these are low-rank adapters, to be added to the weights."""
        return any(name.endswith(".lora_A") for name in self.arrays)

    @property
    def n_frozen_layers(self) -> int:
        """How many of the lowest layers are as in the checkpoint, if the embeddings are."""
        layers = [int(name.split(".")[1]) for name in self.arrays if name.startswith("layers.")]
        return min(layers) if len(layers) == len(self.arrays) else 0


def replaced_weights(
    weights: Iterable[tuple[str, torch.Tensor]], tuned: TunedWeights
) -> Iterator[tuple[str, torch.Tensor]]:
    """Put what fine-tuning changed in its place among named weights."""
    for name, tensor in weights:
        down = tuned.arrays.get(f"{name}.lora_A")
        if down is not None:
            up = tuned.arrays[f"{name}.lora_B"]
            if (
                tensor.ndim != 2
                or (len(up), *down.shape[1:]) != tensor.shape
                or up.shape[1:] != down.shape[:1]
            ):
                raise ValueError(f"the adapter of {name} has the shapes {up.shape} and {down.shape}")
            delta = _tensor(up) @ _tensor(down)
            yield name, tensor + LORA_SCALE * delta
            continue
        if name not in tuned.arrays:
            yield name, tensor
            continue
        values = _tensor(tuned.arrays[name])
        if name == WORD:
            table = dense_rows(tensor, slice(None))
            table[torch.from_numpy(np.array(tuned.arrays[WORD_ROWS]))] = values
            values = table
        elif values.shape != tensor.shape:
            raise ValueError(
                f"{name} has the shape {tuple(values.shape)}, and the network {tuple(tensor.shape)}"
            )
        yield name, values


def _tensor(array: np.ndarray) -> torch.Tensor:
    # A copy: the array may be a read-only memory map.
    return torch.from_numpy(np.array(array, dtype=np.float32))


def merge_weights(
    earlier: Mapping[str, np.ndarray], later: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return what two fits in a row changed: the later weights, and rows of the embedding table of both."""
    merged = {**earlier, **later}
    if WORD_ROWS in earlier and WORD_ROWS in later:
        only_earlier = ~np.isin(earlier[WORD_ROWS], later[WORD_ROWS])
        rows = np.concatenate([earlier[WORD_ROWS][only_earlier], later[WORD_ROWS]])
        values = np.concatenate([earlier[WORD][only_earlier], later[WORD]])
        order = np.argsort(rows)
        merged[WORD_ROWS], merged[WORD] = rows[order], values[order]
    return merged
