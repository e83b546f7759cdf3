"""Compiled kernels for a CPU, and torch's operations where there are none."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.optim.adamw import adamw as torch_adamw

from ...checkpoints import q4
from . import _library
from ._library import call
from ._library import on_threads as on_threads

_DTYPES = (torch.float32, torch.bfloat16)
_STEP = 16  # numbers of the widest vector
# The best first; ``attention`` takes what these do not.
_BFLOAT16_ATTENTION = {
    "forward": ("tiled_attention", "paired_attention"),
    "backward": ("paired_attention",),
}


def has_attention(dtype: torch.dtype, head_size: int) -> bool:
    """Tell whether :func:`attention` is there for a precision and a head size."""
    return dtype in _DTYPES and head_size % _STEP == 0 and _library.load() is not None


def attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Compute ``varlen.varlen_attention``, with gradients, of float32 or bfloat16 on the CPU.

    Slots behind the sequences get 0.
    """
    if qkv.dtype not in _DTYPES:
        raise TypeError(f"There is no such kernel for {qkv.dtype}.")
    attend = _Attention.apply if qkv.requires_grad else _attend
    return attend(qkv.contiguous(), cu_seqlens, n_heads)


def has_gather_q4() -> bool:
    """Tell whether :func:`gather_q4` is there."""
    return _library.load() is not None


def gather_q4(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of a matrix in 4 bits, see :func:`~skminilm.checkpoints.q4.dequantize_q4`.

    Parameters
    ----------
    table : Tensor of uint8, shape (n_rows, n_blocks, 18)
    ids : Tensor of int64, shape (n_ids,)
        Rows of the table; IndexError where there are none such.

    Returns
    -------
    Tensor of float32, shape (n_ids, 32 * n_blocks)
    """
    n_blocks = table.shape[1]
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < len(table)):
        raise IndexError(f"An id is outside of the {len(table)} rows of the table.")
    rows = torch.empty(len(ids), q4.BLOCK * n_blocks, dtype=torch.float32, device="cpu")
    tensors = table.contiguous(), ids.contiguous(), rows
    call("gather_q4", tensors, ctypes.c_int64(len(ids)), ctypes.c_int64(n_blocks))
    return rows


def gelu(x: torch.Tensor) -> torch.Tensor:
    """``torch.nn.functional.gelu``, with gradients; compiled where `x` allows."""
    return _Gelu.apply(x) if _takes(x) and x.numel() % _STEP == 0 else F.gelu(x)


def adamw(
    parameters: torch.Tensor,
    moments: Sequence[torch.Tensor],
    gradient: torch.Tensor,
    view: torch.Tensor | None,
    *,
    n_steps: int,
    scale: float,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """Change parameters by a step of AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101).

    Compiled where the gradient allows: in one pass over memory, which bounds the time.

    Parameters
    ----------
    parameters : Tensor of float32
        Changed in place, as are the `moments`, of the same size.
    moments : sequence of two Tensors of float32
    gradient : Tensor
        It may be overwritten.
    view : Tensor or None
        Receives the parameters in its own precision.
    n_steps : int
        With this one.
    scale : float
        What the gradient is multiplied by.
    learning_rate, weight_decay : float
    betas : (float, float)
    epsilon : float
    """
    is_compiled = _takes(gradient)
    in_one_pass = is_compiled and view is not None and view.dtype == gradient.dtype
    if is_compiled:
        step = _AdamWStep(
            scale,
            1 - learning_rate * weight_decay,
            learning_rate / (1 - betas[0] ** n_steps),
            *betas,
            (1 - betas[1] ** n_steps) ** -0.5,
            epsilon,
        )
        tensors = (parameters, *moments, gradient.contiguous(), view if in_one_pass else None)
        call("adamw_step", tensors, ctypes.c_int64(parameters.numel()), step, _is_bfloat16(gradient))
    else:
        torch_adamw(
            [parameters],
            [gradient.float().mul_(scale)],
            [moments[0]],
            [moments[1]],
            [],
            [torch.full((), n_steps - 1.0, dtype=torch.float32, device=parameters.device)],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=learning_rate,
            beta1=betas[0],
            beta2=betas[1],
            eps=epsilon,
            weight_decay=weight_decay,
        )
    if view is not None and not in_one_pass:
        view.copy_(parameters)


class _AdamWStep(ctypes.Structure):
    """``Step`` of ``adamw.cpp``."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("scale", "kept", "rate", "beta_1", "beta_2", "correction", "epsilon")
    ]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cu_seqlens, n_heads):
        ctx.save_for_backward(qkv, cu_seqlens)
        ctx.n_heads = n_heads
        return _attend(qkv, cu_seqlens, n_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        qkv, cu_seqlens = ctx.saved_tensors
        of_qkv = torch.empty_like(qkv)
        _call_attention("backward", (qkv, gradient.contiguous(), of_qkv, cu_seqlens), ctx.n_heads)
        return of_qkv, None, None


def _attend(qkv: torch.Tensor, cu_seqlens: torch.Tensor, n_heads: int) -> torch.Tensor:
    attended = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    _call_attention("forward", (qkv, attended, cu_seqlens), n_heads)
    return attended


def _call_attention(direction: str, tensors: tuple[torch.Tensor, ...], n_heads: int) -> None:
    """Call the best kernel for `tensors`, of which the first are the queries, keys and values, the last the offsets."""
    qkv, cu_seqlens = tensors[0], tensors[-1]
    n_slots, width = qkv.shape
    head_size, is_bfloat16 = width // (3 * n_heads), _is_bfloat16(qkv)
    if head_size % _STEP or width != 3 * n_heads * head_size or not head_size:
        raise ValueError(f"{width} columns are no queries, keys and values of {n_heads} heads.")
    sizes = ctypes.c_int64(n_slots), len(cu_seqlens) - 1, n_heads, head_size
    for kernel in _BFLOAT16_ATTENTION[direction] if is_bfloat16 else ():
        step = getattr(_library.load(), f"{kernel}_step")()
        if step and head_size % step == 0:
            return call(f"{kernel}_{direction}", tensors, *sizes)
    return call(f"attention_{direction}", tensors, *sizes, is_bfloat16)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        result = torch.empty_like(x)
        call("gelu_forward", (x, result), ctypes.c_int64(x.numel()), _is_bfloat16(x))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        of_x = torch.empty_like(x)
        tensors = (x, gradient.contiguous(), of_x)
        call("gelu_backward", tensors, ctypes.c_int64(x.numel()), _is_bfloat16(x))
        return of_x


def _takes(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _DTYPES and _library.load() is not None


def _is_bfloat16(x: torch.Tensor) -> int:
    return int(x.dtype == torch.bfloat16)
