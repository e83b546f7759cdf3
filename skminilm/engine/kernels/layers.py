"""The parts of a layer that treat each token by itself, in few calls, on a CPU with AVX2 or AVX-512."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch

from . import _library
from ._library import call

SIZE_STEP = 64  # rows and columns of a matrix are a multiple of it
# Of factors: ``Kind`` of ``layers.cpp``, and for integers what passes between the calls.
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int16: 2, torch.int8: 3}
_STATES = {torch.int16: torch.float32, torch.int8: torch.bfloat16}


def is_available(dtype: torch.dtype) -> bool:
    """Tell whether the kernel is there for factors of a type on this processor.

    Parameters
    ----------
    dtype : torch.dtype
        float32, bfloat16, int16 or int8; of others it is not.
    """
    return dtype in _KINDS and _library.load() is not None and _layout(dtype) is not None


def sums_in_16_bits() -> bool:
    """Tell whether :class:`Matrix` rounds int8 more coarsely, for a processor that sums in 16 bits."""
    return _layout(torch.int8).n_steps > 1


def takes_sizes(*sizes: int) -> bool:
    """Tell whether the kernel takes matrices of such sizes."""
    return all(size % SIZE_STEP == 0 for size in sizes)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of hidden states for layers with factors of a type."""
    return _STATES.get(dtype, dtype)


class _Layout(NamedTuple):
    """What ``layer_layout`` of ``layers.cpp`` tells."""

    n_parts: int
    n_tiles: int
    groups: int
    columns: int
    n_steps: int


def _layout(dtype: torch.dtype) -> _Layout | None:
    layout = (ctypes.c_int * len(_Layout._fields))()
    return None if _library.load().layer_layout(_KINDS[dtype], layout) else _Layout(*layout)


class Matrix:
    """A matrix laid out for the products, in integers each row with its own scale.

    Parameters
    ----------
    matrix : Tensor of float32, shape (n_outputs, n_inputs)
        Both sizes are multiples of `SIZE_STEP`.
    bias : Tensor of float32, shape (n_outputs,)
    dtype : torch.dtype
        Of the factors: float32, bfloat16, int16 or int8.
    """

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        self.n_outputs, self.n_inputs = matrix.shape
        self.dtype = dtype
        if bias.shape != (self.n_outputs,):
            raise ValueError(
                f"A matrix of {self.n_outputs} outputs has a bias of the shape {tuple(bias.shape)}."
            )
        n_parts, n_tiles, groups, columns, n_steps = _layout(dtype)
        scales = sums = None
        if not dtype.is_floating_point:
            scales = _row_scales(matrix, dtype, n_steps)
            matrix = (matrix / scales[:, None]).round()
        if dtype == torch.int8:
            sums = scales * matrix.sum(dim=1)
        parts = _as_sum(matrix) if n_parts == 2 else [matrix.to(dtype)]
        neighbours = 4 // parts[0].itemsize
        outer = self.n_outputs // (n_tiles * columns), self.n_inputs // (groups * neighbours)
        tiles = torch.stack(parts).view(n_parts, outer[0], n_tiles, columns, outer[1], groups, neighbours)
        numbers = tiles.permute(1, 0, 4, 2, 5, 3, 6).contiguous()
        self._tensors = numbers, scales, sums, bias.contiguous()
        places = (None if tensor is None else tensor.data_ptr() for tensor in self._tensors)
        self.c_struct = _Matrix(*places, self.n_outputs, self.n_inputs)


def _row_scales(matrix: torch.Tensor, dtype: torch.dtype, n_steps: int) -> torch.Tensor:
    """Return what the integers of each row are to be multiplied by, float32 (n_outputs,)."""
    scales = matrix.abs().amax(dim=1) / torch.iinfo(dtype).max
    if (
        dtype == torch.int8 and n_steps > 1
    ):  # as MultiplyPairsThenAdd sums: 255 times each of these at the most
        sums = matrix.view(len(matrix), -1, n_steps, 2, 2).transpose(2, 3).flatten(3)
        largest = torch.maximum(sums.clamp_min(0).sum(dim=3), sums.clamp_max(0).sum(dim=3).neg())
        room = torch.iinfo(torch.int16).max // 255 - n_steps  # rounding adds 1/2 a number
        scales = torch.maximum(scales, largest.amax(dim=(1, 2)) / room)
    scales = scales.clamp_min(torch.finfo(torch.float32).tiny)
    if dtype == torch.int16:  # as Int16Factors has it
        largest_norm = 46339 - 0.5 * matrix.shape[1] ** 0.5
        scales = torch.maximum(scales, matrix.norm(dim=1) / largest_norm).clamp_min(1e-20)
    return scales


def _as_sum(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Return two matrices in bfloat16 whose sum is a matrix in float32, within 2^-17 of each number."""
    high = matrix.bfloat16()
    return [high, (matrix - high).bfloat16()]


class AfterAttention:
    """What follows attention in a layer: projection, norm, feed-forward, norm.

    Parameters
    ----------
    attention_output, intermediate, output : Matrix
    attention_norm, output_norm : (Tensor, Tensor)
        Weight and bias, float32 (hidden_size,).
    epsilon : float
        Of the norms.
    """

    def __init__(
        self,
        attention_output: Matrix,
        attention_norm: tuple[torch.Tensor, torch.Tensor],
        intermediate: Matrix,
        output: Matrix,
        output_norm: tuple[torch.Tensor, torch.Tensor],
        epsilon: float,
    ) -> None:
        matrices = attention_output, intermediate, output
        size, wide = output.n_outputs, intermediate.n_outputs
        shapes = [(matrix.n_outputs, matrix.n_inputs) for matrix in matrices]
        if shapes != [(size, size), (wide, size), (size, wide)]:
            raise ValueError(f"Matrices of the shapes {shapes} do not follow each other in a layer.")
        if any(tensor.shape != (size,) for tensor in (*attention_norm, *output_norm)):
            raise ValueError(f"The norms of a layer need {size} numbers each.")
        norms = [tuple(tensor.contiguous() for tensor in norm) for norm in (attention_norm, output_norm)]
        self.dtype, self.n_inputs = output.dtype, output.n_outputs
        self._parts = matrices, norms  # the structure holds their places alone
        self.c_struct = _Layer(
            *(matrix.c_struct for matrix in matrices),
            *(_Norm(*(tensor.data_ptr() for tensor in norm)) for norm in norms),
            epsilon,
        )


def product(x: torch.Tensor, matrix: Matrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x @ matrix.T + bias``.

    For int8, each row of `x` becomes 256 steps between its least and its
    greatest number, for int16 as many as keep its norm below 46,340: so sums
    of products fit into 32 bits.

    Parameters
    ----------
    x : Tensor, shape (n_tokens, n_inputs)
        Float32 for a matrix in float32 or int16, else bfloat16.
    matrix : Matrix
    out : Tensor, default=None
        Contiguous, receives the result: where it is large, memory that is new takes longer than the product.

    Returns
    -------
    Tensor of the same type, shape (n_tokens, n_outputs)
    """
    if out is None:
        out = x.new_empty(len(x), matrix.n_outputs)
    _call("layer_product", (x,), out, matrix, matrix.n_outputs)
    return out


def integer_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` by integers in 16 bits; both factors are rounded here, each row on its own scale.

    Where a weight is used more than once, :class:`Matrix` rounds it once.

    Parameters
    ----------
    x : Tensor of float32, shape (n_rows, n_inputs)
        With any strides.
    weight : Tensor of float32, shape (n_outputs, n_inputs)
        With any strides; `n_outputs` is a multiple of `SIZE_STEP`.
    bias : Tensor of float32, shape (n_outputs,), default=None

    Returns
    -------
    Tensor of float32, shape (n_rows, n_outputs)
    """
    (n_rows, n_inputs), (n_outputs, depth) = x.shape, weight.shape
    if n_inputs != depth or n_outputs % SIZE_STEP or (bias is not None and bias.shape != (n_outputs,)):
        raise ValueError(
            f"No product of {tuple(x.shape)} with {tuple(weight.shape)}: expected as many columns in both, and a multiple "
            f"of {SIZE_STEP} rows in the second, each with a number of the bias."
        )
    tensors = x, weight, None if bias is None else bias.contiguous()
    if any(t is not None and (t.dtype != torch.float32 or t.device.type != "cpu") for t in tensors):
        raise ValueError(
            f"integer_product takes float32 on the CPU, not {x.dtype} on {x.device} and {weight.dtype} on {weight.device}."
        )
    out = x.new_empty(n_rows, n_outputs)
    sizes = map(ctypes.c_int64, (*x.stride(), *weight.stride(), n_rows, n_outputs, n_inputs))
    call("integer_product", (*tensors, out), *sizes)
    return out


def after_attention(
    attended: torch.Tensor, hidden: torch.Tensor, layer: AfterAttention, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the hidden states behind a layer.

    Parameters
    ----------
    attended : Tensor, shape (n_tokens, hidden_size)
        What attention returned; float32 for a layer in float32 or int16, else bfloat16.
    hidden : Tensor of the same type, shape (n_tokens, hidden_size)
        The states before the layer.
    layer : AfterAttention
    out : Tensor, default=None
        Contiguous, receives the result; may be `attended` or `hidden`.

    Returns
    -------
    Tensor of the same type, shape (n_tokens, hidden_size)
    """
    if out is None:
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    _call("layer_after_attention", (attended, hidden), out, layer, layer.n_inputs)
    return out


def _call(
    name: str,
    inputs: tuple[torch.Tensor, ...],
    result: torch.Tensor,
    weights: Matrix | AfterAttention,
    n_outputs: int,
) -> None:
    dtype = state_dtype(weights.dtype)
    if len({len(x) for x in inputs}) > 1:
        raise ValueError(f"{name} takes as many tokens of each, not {[len(x) for x in inputs]}.")
    for x in inputs:
        if x.dtype != dtype or x.shape[1] != weights.n_inputs:
            raise ValueError(f"{name} takes {dtype} of {weights.n_inputs} columns, not {x.dtype}, {x.shape}.")
    n_tokens = len(inputs[0])
    if result.dtype != dtype or result.shape != (n_tokens, n_outputs) or not result.is_contiguous():
        raise ValueError(
            f"{name} writes contiguous {dtype} of shape {(n_tokens, n_outputs)}, not {result.dtype}, {result.shape}."
        )
    tensors = *(x.contiguous() for x in inputs), result
    call(name, tensors, ctypes.byref(weights.c_struct), _KINDS[weights.dtype], ctypes.c_int64(n_tokens))


class _Matrix(ctypes.Structure):
    """``Matrix`` of ``layers.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("numbers", "scales", "sums", "bias")),
        *((name, ctypes.c_int64) for name in ("n", "depth")),
    ]


class _Norm(ctypes.Structure):
    """``Norm`` of ``layers.cpp``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")]


class _Layer(ctypes.Structure):
    """``Layer`` of ``layers.cpp``."""

    _fields_ = [
        *((name, _Matrix) for name in ("attention_output", "intermediate", "output")),
        *((name, _Norm) for name in ("attention_norm", "output_norm")),
        ("epsilon", ctypes.c_float),
    ]
