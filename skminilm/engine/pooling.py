"""Token states to one vector a text or pair."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..checkpoints import PAIR
from .packing import Pack


def pool(hidden: torch.Tensor, pack: Pack, pooling: str) -> torch.Tensor:
    """Pool the last hidden states of each sequence of a pack.

    Parameters
    ----------
    hidden : Tensor, shape (n_slots, hidden_size)
    pack : Pack
    pooling : {"mean", "cls", "max", "pair"}
        Over all tokens of a sequence, the special ones included; ``"pair"``
        see :func:`pool_pairs`.

    Returns
    -------
    Tensor of float32, shape (n_sequences, hidden_size)
    """
    if pooling == PAIR:
        return pool_pairs(hidden, pack)
    if pooling == "cls":
        return hidden[pack.cu_seqlens[:-1].long()].float()
    return reduce_segments(hidden[: pack.n_tokens], pooling, pack.lengths)


def pool_pairs(hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Compare the two texts of each pair, which have seen one another in all layers.

    Their means u and v, of norm 1, become (u, v, abs(u - v), u * v), as in
    InferSent (Conneau et al., 2017, arXiv:1705.02364, section 3.1).

    Returns
    -------
    Tensor of float32, shape (n_sequences, 4 * hidden_size)
        The products are scaled by the square root of hidden_size, so that
        they weigh as much as the rest.
    """
    lengths = torch.stack([pack.second_starts, pack.lengths - pack.second_starts], dim=1).flatten()
    means = reduce_segments(hidden[: pack.n_tokens], "mean", lengths)
    first, second = unit_length(means).view(-1, 2, hidden.shape[1]).unbind(1)
    products = first * second * math.sqrt(hidden.shape[1])
    return torch.cat([first, second, (first - second).abs(), products], dim=1)


def reduce_segments(hidden: torch.Tensor, reduction: str, lengths: torch.Tensor) -> torch.Tensor:
    """Take the mean or the maximum of rows that follow each other, `lengths` of them at a time, in float32."""
    # segment_reduce, not index_add: the latter adds in any order on a GPU. Unsafe: to check the lengths,
    # which are a pack's and right, the host would wait until a GPU has computed all before.
    return torch.segment_reduce(hidden.float(), reduction, lengths=lengths, axis=0, unsafe=True)


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Scale each row to the Euclidean norm 1."""
    return F.normalize(vectors, dim=1)
