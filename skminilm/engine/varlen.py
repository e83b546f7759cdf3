"""Attention over sequences of different lengths in one call, where there is a kernel for it.

On a GPU FlashAttention (Dao, 2023, arXiv:2307.08691) by the operator that torch's
own nested tensors call; its names are private, so it is tried out before it is
used. On a CPU our own, see :mod:`.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from . import kernels
from .hardware import is_out_of_memory
from .modes import own_modes

_HALF = (torch.bfloat16, torch.float16)
_works: dict[tuple[str, torch.dtype, int, bool], bool] = {}


def varlen_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int, n_heads: int
) -> torch.Tensor:
    """Scaled dot-product attention of every sequence to itself.

    Parameters
    ----------
    qkv : Tensor, shape (n_slots, 3 * hidden_size)
    cu_seqlens : Tensor of int32, shape (n_sequences + 1,)
        Offsets of the sequences, which on a GPU cover all slots.
    max_length : int
        Tokens of the longest.
    n_heads : int

    Returns
    -------
    Tensor, shape (n_slots, hidden_size)
    """
    if qkv.device.type == "cpu":
        return kernels.attention(qkv, cu_seqlens, n_heads)
    return _flash_attention(qkv, cu_seqlens, max_length, n_heads)


def can_use_varlen(
    device: torch.device, dtype: torch.dtype, head_size: int, *, gradients: bool = False
) -> bool:
    """Tell whether there is a kernel for a device, a precision and a head size, and computes what it should."""
    if not _may_have_kernel(device, dtype, head_size):
        return False
    key = (str(device), dtype, head_size, gradients)
    if key not in _works:
        _works[key] = _try(*key)
    return _works[key]


def _may_have_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    if device.type == "cpu":
        return kernels.has_attention(dtype, head_size)
    return device.type == "cuda" and dtype in _HALF


def _flash_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int, n_heads: int
) -> torch.Tensor:
    n_tokens, width = qkv.shape
    query, key, value = qkv.view(n_tokens, 3, n_heads, width // (3 * n_heads)).unbind(1)
    attended = _torch_kernel()(query, key, value, cu_seqlens, cu_seqlens, max_length, max_length)
    return attended.reshape(n_tokens, width // 3)


def _torch_kernel() -> Callable[..., torch.Tensor]:
    operator = torch.ops.aten._flash_attention_forward
    is_causal, dropout, keeps_probabilities = False, 0.0, False
    return lambda *arguments: operator(*arguments, dropout, is_causal, keeps_probabilities)[0]


@own_modes(inference=False)
def _try(device: str, dtype: torch.dtype, head_size: int, gradients: bool) -> bool:
    lengths, n_heads = [7, 3, 1], 2
    cu_seqlens = torch.tensor([0, 7, 10, 11], dtype=torch.int32, device=device)
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (sum(lengths), n_heads * head_size)
    qkv, weights = (
        torch.randn(shape[0], n * shape[1], generator=generator, dtype=torch.float32, device="cpu")
        for n in (3, 1)
    )

    def one_by_one(qkv: torch.Tensor) -> torch.Tensor:
        attended = []
        for part in qkv.split(lengths):
            heads = part.view(-1, 3, n_heads, head_size).permute(1, 2, 0, 3)
            attended.append(F.scaled_dot_product_attention(*heads).transpose(0, 1).reshape(-1, shape[1]))
        return torch.cat(attended)

    def in_one_call(qkv: torch.Tensor) -> torch.Tensor:
        return varlen_attention(qkv.to(device, dtype), cu_seqlens, max(lengths), n_heads).float().cpu()

    def results(attend: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        own = qkv.clone().requires_grad_(gradients)
        attended = attend(own)
        return [attended, *(torch.autograd.grad((attended * weights).sum(), own) if gradients else ())]

    try:
        found, expected = results(in_one_call), results(one_by_one)
        return all(torch.allclose(*both, rtol=0.05, atol=0.05) for both in zip(found, expected, strict=True))
    except Exception as error:
        if is_out_of_memory(error):  # says nothing of the kernel
            raise
        return False  # not in this torch, not on this GPU: there is another way
