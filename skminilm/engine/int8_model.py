"""A BERT-shaped checkpoint on a CPU, its products in 8-bit integers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch

from ..checkpoints import Checkpoint
from ._names import layer_prefix
from .attention import attention
from .kernels import int8
from .packed_model import LAYER_PARTS, PackedModel
from .packing import Pack


class Int8Model(PackedModel):
    """Runs a BERT-shaped checkpoint on packed sequences, each product in 8-bit integers.

    Weights are rounded with a scale a row, and activations with a range a
    token, which is found when they are there: nothing is calibrated.
    Attention and what passes from layer to layer is in bfloat16.

    Parameters
    ----------
    checkpoint : Checkpoint
    weights : iterable of (str, Tensor of float32)
        See :func:`~skminilm.engine.packed_model.fused_weights`.

    Raises
    ------
    ValueError
        The checkpoint's sizes are not those that the products take.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        config = checkpoint.config
        sizes = config.hidden_size, config.intermediate_size
        if any(size % int8.SIZE_STEP for size in sizes):
            raise ValueError(
                f"precision='int8' needs sizes that are multiples of {int8.SIZE_STEP}; {checkpoint.name!r} has "
                f"layers of {sizes[0]} and {sizes[1]} numbers a token. Use precision='auto', or "
                "backend='openvino'."
            )
        self._parts: dict[str, torch.Tensor] = {}  # of the layer that is being read
        self._qkv: list[int8.Int8Matrix] = []
        self._after_attention: list[int8.Int8Layer] = []
        super().__init__(checkpoint, weights, torch.device("cpu"), torch.bfloat16)

    def _add_layer_weight(self, name: str, tensor: torch.Tensor) -> None:
        prefix = layer_prefix(len(self._qkv))
        self._parts[name.removeprefix(prefix)] = tensor.float()
        if len(self._parts) == 2 * len(LAYER_PARTS):
            self._add_layer()
            self._parts.clear()

    def _add_layer(self) -> None:
        def part(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return self._parts[f"{name}.weight"], self._parts[f"{name}.bias"]

        self._qkv.append(int8.Int8Matrix(*part("qkv")))
        layer = int8.Int8Layer(
            attention_output=int8.Int8Matrix(*part("attention_output")),
            attention_norm=part("attention_norm"),
            intermediate=int8.Int8Matrix(*part("intermediate")),
            output=int8.Int8Matrix(*part("output")),
            output_norm=part("output_norm"),
            epsilon=self.config.layer_norm_eps,
        )
        self._after_attention.append(layer)

    def run_layers(
        self, hidden: torch.Tensor, pack: Pack, *, first_layer: int = 0, stop_layer: int | None = None
    ) -> torch.Tensor:
        """See :meth:`PackedModel.run_layers`."""
        layers = zip(self._qkv, self._after_attention, strict=True)
        for qkv, after_attention in islice(layers, first_layer, stop_layer):
            attended = attention(int8.product(hidden, qkv), pack, self.config.num_attention_heads)
            hidden = int8.after_attention(attended, hidden, after_attention)
        return hidden
