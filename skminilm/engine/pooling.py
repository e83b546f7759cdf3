"""Token states to one vector per text or pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..checkpoints import PAIR
from .packing import Pack

_HIDDEN = -1e4  # a score that must not count: far below any, and finite in every precision
_SHARPNESS = 20.0  # of the weights of counterparts: 10 to 50 measured alike


def pool(hidden: torch.Tensor, pack: Pack, pooling: str, normalize: bool = False) -> torch.Tensor:
    """Pool the last hidden states of each sequence of a pack.

    Parameters
    ----------
    hidden : Tensor, shape (n_slots, hidden_size)
    pack : Pack
    pooling : {"mean", "cls", "max", "pair"}
        Over all tokens of a sequence, the special ones included; ``"pair"``
        see :func:`pool_pairs`.
    normalize : bool, default=False
        Scale each vector to norm 1.

    Returns
    -------
    Tensor of float32, shape (n_sequences, hidden_size)
    """
    if pooling == PAIR:
        vectors = pool_pairs(hidden, pack)
    elif pooling == "cls":
        vectors = hidden[pack.cu_seqlens[:-1].long()].float()
    else:
        vectors = reduce_segments(hidden[: pack.n_tokens], pooling, pack.lengths)
    return unit_length(vectors) if normalize else vectors


def pool_pairs(hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Compare the two texts of each pair, which have seen one another in all layers.

    The means u and v of both texts, of norm 1, and for each text what is
    least matched by the other one: the maxima over its tokens of abs(x - c),
    where x is the state of a token and c its counterpart, see
    :func:`counterparts`.

    Returns
    -------
    Tensor of float32, shape (n_sequences, 4 * hidden_size)
        u, v, the maxima of the first text, those of the second.

    References
    ----------
    Parikh et al., 2016, arXiv:1606.01933 (align, compare, aggregate); Chen et
    al., 2017, arXiv:1609.06038 (maxima beside means).
    """
    states = hidden[: pack.n_tokens].float()
    lengths = torch.stack([pack.second_starts, pack.lengths - pack.second_starts], dim=1).flatten()
    means = unit_length(reduce_segments(states, "mean", lengths))
    states = unit_length(states)
    unmatched = reduce_segments((states - counterparts(states, pack)).abs(), "max", lengths)
    return torch.cat([means.view(len(pack.rows), -1), unmatched.view(len(pack.rows), -1)], dim=1)


def counterparts(states: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Return for each token of a pair the mean of the other text's tokens, weighted by how near they are.

    Parameters
    ----------
    states : Tensor of float32, shape (n_tokens, hidden_size)
        Of norm 1.
    pack : Pack

    Returns
    -------
    Tensor of float32, shape (n_tokens, hidden_size)
        The weights are the softmax of the cosines times 20.
    """
    n_pairs, longest = len(pack.rows), pack.max_length
    pairs = torch.arange(n_pairs, device=states.device)
    pairs = torch.repeat_interleave(pairs, pack.lengths, output_size=pack.n_tokens)  # or the host would wait
    positions = pack.position_ids[: pack.n_tokens]
    slots = pairs * longest + positions
    # One byte each: there are as many products of them as scores.
    sides = torch.where(positions < pack.second_starts[pairs], -1, 1).to(torch.int8)
    sides = sides.new_zeros(n_pairs * longest).index_copy(0, slots, sides).view(n_pairs, longest)
    padded = states.new_zeros(n_pairs * longest, states.shape[1]).index_copy(0, slots, states)
    padded = padded.view(n_pairs, longest, -1)
    is_hidden = sides[:, :, None] * sides[:, None, :] >= 0  # of the same text, or no token
    scores = (_SHARPNESS * padded @ padded.transpose(1, 2)).masked_fill(is_hidden, _HIDDEN)
    return (scores.softmax(-1) @ padded).flatten(0, 1)[slots]


def reduce_segments(hidden: torch.Tensor, reduction: str, lengths: torch.Tensor) -> torch.Tensor:
    """Take the mean or the maximum of rows that follow each other, `lengths` of them at a time, in float32."""
    # segment_reduce, not index_add: the latter adds in any order on a GPU. Unsafe: to check the lengths,
    # which are a pack's and right, the host would wait until a GPU has computed all before.
    return torch.segment_reduce(hidden.float(), reduction, lengths=lengths, axis=0, unsafe=True)


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Scale each row to the Euclidean norm 1."""
    return F.normalize(vectors, dim=1)
