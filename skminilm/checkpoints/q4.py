"""Weights in 4 bits: blocks of 32 with one scale (the layout Q4_0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 32
BLOCK_BYTES = 2 + BLOCK // 2


def dequantize_q4(blocks: torch.Tensor) -> torch.Tensor:
    """Return the weights of Q4_0 blocks.

    Parameters
    ----------
    blocks : Tensor of uint8, shape (..., n_blocks, 18)
        A float16 scale, then 16 bytes: weight j is the low nibble of byte j
        minus 8, weight j + 16 the high nibble minus 8, times the scale.

    Returns
    -------
    Tensor of float32, shape (..., n_blocks * 32)
    """
    import torch

    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    packed = blocks[..., 2:]
    nibbles = torch.cat([packed & 0x0F, packed >> 4], dim=-1)
    weights = (nibbles.to(torch.int8) - 8).float() * scale
    return weights.flatten(-2)
