"""Texts of different lengths without padding: which of them are computed together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..checkpoints.token_batch import TokenBatch


@dataclass(frozen=True)
class AttentionGroup:
    """Neighbouring sequences of a pack that attend in one call, each to itself.

    Attributes
    ----------
    start, stop : int
        Their tokens in the pack.
    n_sequences, max_length : int
        The shape (n_sequences, max_length) that they are laid out in;
        `max_length` is 0 for slots that fill up, which attend to nothing.
    slots : Tensor of int64, shape (stop - start,), or None
        Where in that shape each token goes. None where all sequences have
        the same length, so that a view is enough.
    """

    start: int
    stop: int
    n_sequences: int
    max_length: int
    slots: torch.Tensor | None = None

    @cached_property
    def is_token(self) -> torch.Tensor:
        """Which slots hold a token: bool, shape (n_sequences, max_length)."""
        is_token = torch.zeros(self.n_sequences * self.max_length, dtype=torch.bool, device=self.slots.device)
        return is_token.index_fill_(0, self.slots, True).view(self.n_sequences, self.max_length)

    @cached_property
    def key_bias(self) -> torch.Tensor:
        """What is added to the score of each key: 0, or minus infinity where there is no token; float32."""
        zeros = torch.zeros(self.is_token.shape, dtype=torch.float32, device=self.slots.device)
        return zeros.masked_fill_(~self.is_token, -math.inf)

    @cached_property
    def sources(self) -> torch.Tensor:
        """Which of the group's tokens is in each slot, any where there is none: int64 (n_slots,)."""
        sources = torch.zeros(self.n_sequences * self.max_length, dtype=torch.int64, device=self.slots.device)
        return sources.index_copy_(
            0, self.slots, torch.arange(self.stop - self.start, device=self.slots.device)
        )


@dataclass(frozen=True)
class Pack:
    """Sequences computed in one forward pass, one after the other, longest first.

    Attributes
    ----------
    batch : TokenBatch
    rows : ndarray of int64, shape (n_sequences,)
        Which sequences of `batch` these are.
    input_ids, position_ids : Tensor of int64, shape (n_slots,)
        The tokens of the sequences, then a few that fill up (see :func:`round_up`).
    lengths : Tensor of int64, shape (n_sequences,)
    cu_seqlens : Tensor of int32, shape (n_sequences + 1,)
        Offsets of the sequences.
    groups : list of AttentionGroup, or None
        All slots. None where
        attention takes sequences of different lengths in one call.
    n_tokens, max_length : int
        Tokens of the sequences, and of the longest.
    second_starts : Tensor of int64, shape (n_sequences,), or None
        As in ``TokenBatch``.
    """

    batch: TokenBatch
    rows: np.ndarray
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: torch.Tensor
    cu_seqlens: torch.Tensor
    groups: list[AttentionGroup] | None
    n_tokens: int
    max_length: int
    second_starts: torch.Tensor | None = None


def plan_packs(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Yield the rows of each pack: longest first, at most `max_tokens` together, packs of like size.

    A single text longer than `max_tokens` is a pack of its own. Texts of
    equal length keep their order. A small pack behind full ones would nearly
    always be of another size, see :func:`round_up`.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order].tolist()
    rest, n_packs = sum(descending), _count_packs(descending, max_tokens)
    start, total = 0, 0
    for position, length in enumerate(descending):
        is_full = total + length > max_tokens
        if total and (is_full or (n_packs > 1 and total + length / 2 > rest / n_packs)):
            yield order[start:position]
            rest, n_packs = rest - total, n_packs - 1
            start, total = position, 0
        total += length
    if start < len(order):
        yield order[start:]


def _count_packs(lengths: list[int], max_tokens: int) -> int:
    """Return how many packs texts in this order fill."""
    n_packs, total = 0, max_tokens
    for length in lengths:
        total += length
        if total > max_tokens:
            n_packs, total = n_packs + 1, length
    return n_packs


def make_pack(
    batch: TokenBatch,
    rows: np.ndarray,
    device: torch.device,
    max_padding: float | None,
    length_step: int = 1,
) -> Pack:
    """Gather the tokens of some texts into a pack on a device.

    Parameters
    ----------
    batch : TokenBatch
        All texts.
    rows : ndarray of int64
        Texts of the pack, longest first.
    device : torch.device
    max_padding : float or None
        See :func:`group_by_length`. None where no groups are needed.
    length_step : int, default=1
        See :func:`group_by_length`.
    """
    lengths = batch.lengths[rows]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    n_tokens = int(cu_seqlens[-1])
    # What needs no groups on a GPU takes no slots that fill up either.
    n_padding = 0 if max_padding is None and device.type != "cpu" else round_up(n_tokens) - n_tokens
    position_ids = np.arange(n_tokens) - np.repeat(cu_seqlens[:-1], lengths)

    groups = None if max_padding is None else list(group_by_length(lengths, max_padding, device, length_step))
    if groups is not None and n_padding:
        groups.append(AttentionGroup(n_tokens, n_tokens + n_padding, n_padding, 0))

    return Pack(
        batch=batch,
        rows=rows,
        input_ids=to_device(batch.ids_of(rows), device, n_padding=n_padding),
        position_ids=to_device(position_ids, device, n_padding=n_padding),
        lengths=to_device(lengths, device),
        cu_seqlens=to_device(cu_seqlens, device, dtype=torch.int32),
        groups=groups,
        n_tokens=n_tokens,
        max_length=int(lengths[0]),
        second_starts=None if batch.second_starts is None else to_device(batch.second_starts[rows], device),
    )


def to_device(
    array: np.ndarray, device: torch.device, *, n_padding: int = 0, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Copy an array, and `n_padding` rows of 0 behind it, to a device.

    From pinned memory: out of any other, the host would wait until a GPU has
    computed all before.
    """
    shape = (len(array) + n_padding, *array.shape[1:])
    padded = torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    # By NumPy: torch would share this out to threads, which the tokenizer keeps busy.
    values = padded.numpy()
    values[: len(array)], values[len(array) :] = array, 0
    return padded.to(device, non_blocking=True)


def round_up(n_tokens: int) -> int:
    """Return the slots of a pack: at most 1/8 more than its tokens, and hardly more for a full pack.

    Matrix libraries prepare a product once for each shape that they meet, and
    keep what they prepared; without rounding nearly every pack would be a new
    shape.
    """
    step = 1 << max(0, (n_tokens // 8).bit_length() - 1)
    return -(-n_tokens // step) * step


def group_by_length(
    lengths: np.ndarray, max_padding: float, device: torch.device, length_step: int = 1
) -> Iterator[AttentionGroup]:
    """Group sequences, sorted by descending length, for attention.

    A group may be padded up to `max_padding` times its tokens (0: only equal
    lengths share a group): fewer, larger calls against wasted work. Lengths are padded
    to a multiple of `length_step`: fewer different shapes, for each of which
    matrix libraries keep memory.
    """
    first, start = 0, 0
    while first < len(lengths):
        longest = -(-int(lengths[first]) // length_step) * length_step
        tokens, last = 0, first
        while last < len(lengths):
            padded = (last + 1 - first) * longest
            if last > first and padded > (1 + max_padding) * (tokens + int(lengths[last])):
                break
            tokens += int(lengths[last])
            last += 1
        members = lengths[first:last]
        slots = None
        if members[-1] != longest:  # the shortest
            sequence = np.repeat(np.arange(len(members)), members)
            ends = np.cumsum(members)
            within = np.arange(tokens) - (ends - members)[sequence]
            slots = to_device(sequence * longest + within, device)
        yield AttentionGroup(start, start + tokens, len(members), longest, slots)
        first, start = last, start + tokens
