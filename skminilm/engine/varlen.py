"""Attention over sequences of different lengths in one call, where the GPU has a kernel for it.

FlashAttention (Dao, 2023, arXiv:2307.08691) as torch >= 2.10 offers it in
``torch.nn.attention.varlen``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_HALF = (torch.bfloat16, torch.float16)
_works: dict[tuple[str, torch.dtype], bool] = {}


def varlen_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int, n_heads: int
) -> torch.Tensor:
    """Scaled dot-product attention of every sequence to itself.

    Parameters
    ----------
    qkv : Tensor, shape (n_tokens, 3 * hidden_size)
    cu_seqlens : Tensor of int32, shape (n_sequences + 1,)
        Offsets of the sequences, which cover all tokens.
    max_length : int
        Tokens of the longest.
    n_heads : int

    Returns
    -------
    Tensor, shape (n_tokens, hidden_size)
    """
    n_tokens, width = qkv.shape
    query, key, value = qkv.view(n_tokens, 3, n_heads, width // (3 * n_heads)).unbind(1)
    attended = _kernel()(query, key, value, cu_seqlens, cu_seqlens, max_length, max_length)
    return attended.reshape(n_tokens, width // 3)


def can_use_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernel is there for a device and a precision, and computes what it should."""
    if not _may_have_kernel(device) or dtype not in _HALF:
        return False
    key = (str(device), dtype)
    if key not in _works:
        _works[key] = _try(device, dtype)
    return _works[key]


def _may_have_kernel(device: torch.device) -> bool:
    return device.type == "cuda"


def _kernel():
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _try(device: torch.device, dtype: torch.dtype) -> bool:
    lengths = [7, 3, 1]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * 2 * 32, generator=generator)
    expected = []
    for part in qkv.split(lengths):
        query, key, value = part.view(-1, 3, 2, 32).permute(1, 2, 0, 3)
        expected.append(F.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(-1, 64))
    cu_seqlens = torch.tensor([0, 7, 10, 11], dtype=torch.int32, device=device)
    try:
        with torch.inference_mode():
            found = varlen_attention(qkv.to(device, dtype), cu_seqlens, max(lengths), n_heads=2)
        return torch.allclose(found.float().cpu(), torch.cat(expected), rtol=0.05, atol=0.05)
    except Exception:  # not in this torch, not on this GPU: there is another way
        return False
