"""Attention over sequences of different lengths in one call, where there is a kernel for it.

On a GPU FlashAttention (Dao, 2023, arXiv:2307.08691) as torch >= 2.10 offers
it in ``torch.nn.attention.varlen``; on a CPU our own, see :mod:`.kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import kernels
from .modes import own_modes

_HALF = (torch.bfloat16, torch.float16)
_works: dict[tuple[str, torch.dtype, int], bool] = {}


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


def can_use_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Tell whether there is a kernel for a device, a precision and a head size, and computes what it should."""
    if not _may_have_kernel(device, dtype, head_size):
        return False
    key = (str(device), dtype, head_size)
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


def _torch_kernel():
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@own_modes(inference=True)
def _try(device: str, dtype: torch.dtype, head_size: int) -> bool:
    lengths, n_heads = [7, 3, 1], 2
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (sum(lengths), 3 * n_heads * head_size)
    qkv = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    expected = []
    for part in qkv.split(lengths):
        query, key, value = part.view(-1, 3, n_heads, head_size).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(query, key, value)
        expected.append(attended.transpose(0, 1).reshape(-1, n_heads * head_size))
    cu_seqlens = torch.tensor([0, 7, 10, 11], dtype=torch.int32, device=device)
    try:
        found = varlen_attention(qkv.to(device, dtype), cu_seqlens, max(lengths), n_heads)
        return torch.allclose(found.float().cpu(), torch.cat(expected), rtol=0.05, atol=0.05)
    except torch.OutOfMemoryError:  # says nothing of the kernel
        raise
    except Exception:  # not in this torch, not on this GPU: there is another way
        return False
