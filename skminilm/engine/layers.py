"""The layers of an encoder, without gradients, as the hardware runs them best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from ..checkpoints import BertConfig
from .attention import attention
from .forward import encoder_layer
from .kernels import layers as compiled
from .linear import Linear, PlainLinear, PrepackedLinear, can_prepack
from .packing import Pack
from .weights import LAYER_PARTS


class Layers(ABC):
    """Layers that hold their weights."""

    @abstractmethod
    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a weight by its name in ``fused_weights``; those of one layer follow each other."""

    @abstractmethod
    def run(self, hidden: torch.Tensor, pack: Pack, layers: range) -> torch.Tensor:
        """Return what some of the layers make of hidden states, both (n_slots, hidden_size)."""


def new_layers(config: BertConfig, device: torch.device, dtype: torch.dtype) -> Layers:
    """Return the best layers, still without weights, for a device and a type of weights.

    Raises
    ------
    ValueError
        The type is an integer, and its products are not here, or do not take these sizes.
    """
    has_kernel = device.type == "cpu" and compiled.is_available(dtype)
    takes_sizes = compiled.takes_sizes(config.hidden_size, config.intermediate_size)
    if dtype.is_floating_point and not (has_kernel and takes_sizes):
        return LayersByOperations(config, device, dtype)
    if not has_kernel:
        raise ValueError(
            f"There are no products in {_precision(dtype)} on {device} here: use precision='auto'."
        )
    check_sizes(config, dtype)
    return CompiledLayers(config, dtype)


def check_sizes(config: BertConfig, dtype: torch.dtype) -> None:
    """Check that there are products of integers for the sizes of a checkpoint.

    Raises
    ------
    ValueError
        There are none.
    """
    sizes = config.hidden_size, config.intermediate_size
    if compiled.takes_sizes(*sizes):
        return
    other = ", or backend='openvino'" if dtype == torch.int8 else ""
    raise ValueError(
        f"precision={_precision(dtype)!r} needs sizes that are multiples of {compiled.SIZE_STEP}; the layers of this "
        f"checkpoint have {sizes[0]} and {sizes[1]} numbers a token. Use precision='auto'{other}."
    )


def _precision(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class LayersByOperations(Layers):
    """Each layer as a row of torch's operations, on any device.

    Parameters
    ----------
    config : BertConfig
    device : torch.device
    dtype : torch.dtype
        Matrices that can be laid out for their products are kept in that layout only.
    """

    def __init__(self, config: BertConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._device, self._dtype = config, device, dtype
        self._weights: dict[str, torch.Tensor] = {}
        prepacks = device.type == "cpu" and can_prepack(dtype)
        self._linear: Linear = (PrepackedLinear if prepacks else PlainLinear)(self._weights)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """See :class:`Layers`."""
        moved = tensor.to(self._device, self._dtype)
        if isinstance(self._linear, PrepackedLinear) and moved.ndim == 2:
            self._linear.add(name, moved)
        else:
            self._weights[name] = moved

    def run(self, hidden: torch.Tensor, pack: Pack, layers: range) -> torch.Tensor:
        """See :class:`Layers`."""
        for layer in layers:
            hidden = encoder_layer(hidden, self._weights, layer, pack, self._config, self._linear)
        return hidden


class CompiledLayers(Layers):
    """Each layer as two calls and attention between them, on a CPU.

    In int8 and int16, weights are rounded with a scale a row, and activations
    with a range a token, which is found when they are there: nothing is
    calibrated. What passes between the calls is in bfloat16 for int8, and in
    float32 for int16.

    Parameters
    ----------
    config : BertConfig
    dtype : torch.dtype
        Of the factors of all products.
    """

    def __init__(self, config: BertConfig, dtype: torch.dtype) -> None:
        self._config, self._dtype = config, dtype
        self._qkv: dict[int, compiled.Matrix] = {}
        self._after_attention: dict[int, compiled.AfterAttention] = {}
        self._parts: dict[str, torch.Tensor] = {}  # of the layer that is being read

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """See :class:`Layers`."""
        _, layer, part = name.split(".", 2)
        self._parts[part] = tensor
        if len(self._parts) == 2 * len(LAYER_PARTS):
            self._add_layer(int(layer), self._parts)
            self._parts = {}

    def _add_layer(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        def part(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        def matrix(name: str) -> compiled.Matrix:
            return compiled.Matrix(*part(name), self._dtype)

        self._qkv[layer] = matrix("qkv")
        self._after_attention[layer] = compiled.AfterAttention(
            attention_output=matrix("attention_output"),
            attention_norm=part("attention_norm"),
            intermediate=matrix("intermediate"),
            output=matrix("output"),
            output_norm=part("output_norm"),
            epsilon=self._config.layer_norm_eps,
        )

    def run(self, hidden: torch.Tensor, pack: Pack, layers: range) -> torch.Tensor:
        """See :class:`Layers`."""
        qkv = None  # one for all layers: on some machines new memory takes as long as the product
        for layer in layers:
            qkv = compiled.product(hidden, self._qkv[layer], out=qkv)
            attended = attention(qkv, pack, self._config.num_attention_heads)
            hidden = compiled.after_attention(attended, hidden, self._after_attention[layer], out=attended)
        return hidden
