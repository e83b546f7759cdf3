"""Token states to one vector a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .packing import Pack


def pool(hidden: torch.Tensor, pack: Pack, pooling: str) -> torch.Tensor:
    """Pool the last hidden states of each sequence of a pack.

    Parameters
    ----------
    hidden : Tensor, shape (n_slots, hidden_size)
    pack : Pack
    pooling : {"mean", "cls", "max"}
        Over all tokens of a sequence, the special ones included.

    Returns
    -------
    Tensor of float32, shape (n_sequences, hidden_size)
    """
    if pooling == "cls":
        return hidden[pack.cu_seqlens[:-1].long()].float()
    # segment_reduce, not index_add: the latter adds in any order on a GPU.
    return torch.segment_reduce(hidden[: pack.n_tokens].float(), pooling, lengths=pack.lengths, axis=0)


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Scale each row to the Euclidean norm 1."""
    return F.normalize(vectors, dim=1)
