"""Attention on a CPU, compiled: the library beside this file, where it was built."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

# A library of other sources than these is not used.
_VERSION = 1
_DTYPES = (torch.float32, torch.bfloat16)
_HEAD_SIZE_STEP = 16  # the widest vector


def has_attention(dtype: torch.dtype, head_size: int) -> bool:
    """Tell whether there is a kernel here for a precision and a head size."""
    return dtype in _DTYPES and head_size % _HEAD_SIZE_STEP == 0 and _library() is not None


def attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int, n_heads: int) -> torch.Tensor:
    """Scaled dot-product attention of every sequence to itself, with gradients.

    Parameters
    ----------
    qkv : Tensor of float32 or bfloat16, shape (n_slots, 3 * hidden_size)
        Queries, keys and values side by side, on the CPU.
    cu_seqlens : Tensor of int32, shape (n_sequences + 1,)
        Offsets of the sequences.
    max_length : int
        Tokens of the longest.
    n_heads : int

    Returns
    -------
    Tensor, shape (n_slots, hidden_size)
        0 for slots behind the sequences.
    """
    return _Attention.apply(qkv, cu_seqlens, max_length, n_heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cu_seqlens, max_length, n_heads):
        qkv = qkv.contiguous()
        head_size = qkv.shape[1] // (3 * n_heads)
        attended = qkv.new_empty(len(qkv), n_heads * head_size)
        attended[int(cu_seqlens[-1]) :] = 0
        ctx.sizes = (len(cu_seqlens) - 1, max_length, n_heads, head_size)
        ctx.save_for_backward(qkv, cu_seqlens)
        _call("attention_forward", (qkv, attended, cu_seqlens), ctx.sizes)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        qkv, cu_seqlens = ctx.saved_tensors
        of_qkv = torch.empty_like(qkv)
        of_qkv[int(cu_seqlens[-1]) :] = 0
        _call("attention_backward", (qkv, gradient.contiguous(), of_qkv, cu_seqlens), ctx.sizes)
        return of_qkv, None, None, None


def _call(name: str, tensors: tuple[torch.Tensor, ...], sizes: tuple[int, ...]) -> None:
    places = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    is_bfloat16 = int(tensors[0].dtype == torch.bfloat16)
    getattr(_library(), name)(*places, *sizes, is_bfloat16, torch.get_num_threads())


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name(f"_kernels_{_instructions()}.so")))
    except OSError:  # not built here, or this torch does not bring the OpenMP that it shares with torch
        return None
    return library if library.kernels_version() == _VERSION else None


def _instructions() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    return torch.backends.cpu.get_cpu_capability().lower()
