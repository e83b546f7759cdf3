"""Token states to spans of a context: where an answer may begin and end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..checkpoints.token_batch import TokenBatch
from .packed_model import PackedModel
from .packing import Pack, to_device


@dataclass(frozen=True)
class SpanPlaces:
    """Where spans may be: they begin in [start, own_stop) and end before stop.

    Attributes
    ----------
    starts, own_stops, stops : ndarray of int64, shape (n_sequences,)
    """

    starts: np.ndarray
    own_stops: np.ndarray
    stops: np.ndarray


def pad_logits(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Pad the logits of tokens to one row a sequence.

    Parameters
    ----------
    logits : Tensor of float32, shape (n_tokens, 2)
        For begin and end, the sequences one after the other.
    lengths : Tensor of int64, shape (n_sequences,)
        They are read: where they are on a GPU, the host waits for it.

    Returns
    -------
    Tensor of float32, shape (2, n_sequences, longest)
    """
    return torch.nn.utils.rnn.pad_sequence(logits.split(lengths.tolist()), batch_first=True).permute(2, 0, 1)


def mask_outside(logits: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
    """Replace logits outside of [start, stop) by minus infinity.

    Position 0, that of the first special token, stands for "no answer here"
    and keeps its logit.

    Parameters
    ----------
    logits : Tensor of float32, shape (n_sequences, length)
    starts, stops : Tensor of int64, shape (n_sequences,)
    """
    positions = torch.arange(logits.shape[1], device=logits.device)
    allowed = (positions >= starts[:, None]) & (positions < stops[:, None])
    allowed[:, 0] = True
    return logits.masked_fill(~allowed, -math.inf)


def best_spans(start: torch.Tensor, end: torch.Tensor, max_tokens: int, n_best: int) -> torch.Tensor:
    """Find the best spans of each sequence by the sum of the logits of begin and end.

    Parameters
    ----------
    start, end : Tensor of float32, shape (n_sequences, length)
        Logits; minus infinity where no answer begins or ends, see
        :func:`mask_outside`.
    max_tokens : int
        That a span may have.
    n_best : int

    Returns
    -------
    Tensor of float32, shape (n_sequences, 2 + 3 * n_best)
        The score of no answer; the logarithm of the sum of the exponentials
        of the scores of all spans; and of the best spans, best first, the
        scores (minus infinity where there are fewer), the first and the last
        tokens.
    """
    no_answer = start[:, 0] + end[:, 0]
    start, end = start[:, 1:], end[:, 1:]
    max_tokens = min(max_tokens, max(1, end.shape[1]))  # more fit into no sequence
    # scores[:, i, k] is that of the span of k + 1 tokens that begins at i.
    ends = F.pad(end, (0, max_tokens - 1), value=-math.inf).unfold(1, max_tokens, 1)
    scores = (start[:, :, None] + ends).flatten(1)
    top = scores.topk(min(n_best, scores.shape[1]), dim=1)
    first = top.indices // max_tokens
    last = first + top.indices % max_tokens
    missing = n_best - top.values.shape[1]
    columns = [
        no_answer[:, None],
        scores.logsumexp(dim=1, keepdim=True),
        F.pad(top.values, (0, missing), value=-math.inf),
        F.pad(first + 1, (0, missing)).float(),
        F.pad(last + 1, (0, missing)).float(),
    ]
    return torch.cat(columns, dim=1)


def find_best_spans(
    model: PackedModel,
    batch: TokenBatch,
    places: SpanPlaces,
    coef: np.ndarray,
    intercept: np.ndarray,
    *,
    max_tokens: int,
    n_best: int,
) -> np.ndarray:
    """Compute :func:`best_spans` of many sequences, float32 (n_sequences, 2 + 3 * n_best).

    Where no sequence has so many spans, there are fewer columns.

    Parameters
    ----------
    model : PackedModel
    batch : TokenBatch
    places : SpanPlaces
    coef : ndarray of float32, shape (2, hidden_size)
    intercept : ndarray of float32, shape (2,)
        The head.
    max_tokens, n_best : int
    """
    n_starts, n_ends = (
        int((stops - places.starts).max(initial=1)) for stops in (places.own_stops, places.stops)
    )
    n_best = min(n_best, n_starts * min(max_tokens, n_ends))
    device = model.device
    head = [to_device(array, device, dtype=torch.float32) for array in (coef, intercept)]

    def spans(hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
        logits = F.linear(hidden[: pack.n_tokens].float(), *head)
        begin, end = pad_logits(logits, torch.from_numpy(batch.lengths[pack.rows]))
        limits = (places.starts, places.own_stops, places.stops)
        first, own, last = (to_device(array[pack.rows], device) for array in limits)
        return best_spans(mask_outside(begin, first, own), mask_outside(end, first, last), max_tokens, n_best)

    found = np.empty((len(batch.lengths), 2 + 3 * n_best), np.float32)
    started = (
        (rows, model.start_reduced(batch, rows, spans))
        for rows in model.plan(batch.lengths, model.default_batch_tokens)
    )
    for rows, values in model.in_order(started):
        found[rows] = values
    return found
