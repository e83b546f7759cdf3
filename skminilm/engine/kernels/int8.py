"""A layer's products in 8-bit integers, on processors with AVX-512 VNNI."""

from __future__ import annotations

import ctypes

import torch

from . import _library
from ._library import call

SIZE_STEP = 64  # rows and columns of a matrix are a multiple of it


def is_available() -> bool:
    """Tell whether the processor has the instructions, and whether the kernel was compiled."""
    library = _library.load()
    return library is not None and bool(library.has_int8())


class Int8Matrix:
    """A matrix in 8-bit integers, each row with its own scale.

    Parameters
    ----------
    matrix : Tensor of float32, shape (n_outputs, n_inputs)
        Both sizes are multiples of `SIZE_STEP`.
    bias : Tensor of float32, shape (n_outputs,)
    """

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor) -> None:
        self.n_outputs, n_inputs = matrix.shape
        scales = matrix.abs().amax(dim=1) / 127
        numbers = (matrix / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
        sums = scales * numbers.sum(dim=1)
        # By strips of 64 rows; of each, four numbers of all rows after the other.
        strips = numbers.to(torch.int8).view(-1, SIZE_STEP, n_inputs // 4, 4).transpose(1, 2).contiguous()
        self._tensors = strips, scales, sums, bias.contiguous()
        self.c_struct = _Matrix(*(tensor.data_ptr() for tensor in self._tensors), self.n_outputs, n_inputs)


class Int8Layer:
    """What follows attention in a layer: projection, norm, feed-forward, norm.

    Parameters
    ----------
    attention_output, intermediate, output : Int8Matrix
    attention_norm, output_norm : (Tensor, Tensor)
        Weight and bias, float32 (hidden_size,).
    epsilon : float
        Of the norms.
    """

    def __init__(
        self,
        attention_output: Int8Matrix,
        attention_norm: tuple[torch.Tensor, torch.Tensor],
        intermediate: Int8Matrix,
        output: Int8Matrix,
        output_norm: tuple[torch.Tensor, torch.Tensor],
        epsilon: float,
    ) -> None:
        matrices = attention_output, intermediate, output
        norms = [tuple(tensor.contiguous() for tensor in norm) for norm in (attention_norm, output_norm)]
        self._parts = matrices, norms  # the structure holds their places alone
        self.c_struct = _Layer(
            *(matrix.c_struct for matrix in matrices),
            *(_Norm(*(tensor.data_ptr() for tensor in norm)) for norm in norms),
            epsilon,
        )


def product(x: torch.Tensor, matrix: Int8Matrix) -> torch.Tensor:
    """Return ``x @ matrix.T + bias``.

    Each row of `x` becomes 256 steps between its least and its greatest number.

    Parameters
    ----------
    x : Tensor of bfloat16, shape (n_tokens, n_inputs)
    matrix : Int8Matrix

    Returns
    -------
    Tensor of bfloat16, shape (n_tokens, n_outputs)
    """
    y = x.new_empty(len(x), matrix.n_outputs)
    call("int8_product", (x.contiguous(), y), ctypes.byref(matrix.c_struct), ctypes.c_int64(len(x)))
    return y


def after_attention(attended: torch.Tensor, hidden: torch.Tensor, layer: Int8Layer) -> torch.Tensor:
    """Return the hidden states behind a layer.

    Parameters
    ----------
    attended : Tensor of bfloat16, shape (n_tokens, hidden_size)
        What attention returned.
    hidden : Tensor of bfloat16, shape (n_tokens, hidden_size)
        The states before the layer.
    layer : Int8Layer

    Returns
    -------
    Tensor of bfloat16, shape (n_tokens, hidden_size)
    """
    result = torch.empty_like(hidden)
    tensors = attended.contiguous(), hidden.contiguous(), result
    call("int8_after_attention", tensors, ctypes.byref(layer.c_struct), ctypes.c_int64(len(hidden)))
    return result


class _Matrix(ctypes.Structure):
    """``Matrix`` of ``int8.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("numbers", "scales", "sums", "bias")),
        *((name, ctypes.c_int64) for name in ("n", "depth")),
    ]


class _Norm(ctypes.Structure):
    """``Norm`` of ``int8.cpp``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")]


class _Layer(ctypes.Structure):
    """``Layer`` of ``int8.cpp``."""

    _fields_ = [
        *((name, _Matrix) for name in ("attention_output", "intermediate", "output")),
        *((name, _Norm) for name in ("attention_norm", "output_norm")),
        ("epsilon", ctypes.c_float),
    ]
