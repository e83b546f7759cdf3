"""From the tokens of each text to sequences that a network takes: none is too long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .token_batch import TokenBatch


def _truncate_pair(
    first: np.ndarray, second: np.ndarray, room: int, n_kept: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the longer of two sequences, token by token, until both fit (longest first).

    Of the first no less is left than `n_kept` tokens and one more.
    """
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    keep_first, keep_second = len(first), len(second)
    trim = min(excess, abs(keep_first - keep_second))
    if keep_first > keep_second:
        keep_first -= trim
    else:
        keep_second -= trim
    rest = excess - trim
    keep_first -= rest // 2
    keep_second -= rest - rest // 2
    least = min(len(first), n_kept + 1, room)
    if n_kept and keep_first < least:
        keep_first, keep_second = least, room - least
    return first[:keep_first], second[:keep_second]


def _head_and_tail(ids: np.ndarray, room: int, n_kept: int) -> tuple[np.ndarray, ...]:
    """Keep a quarter of the room from the beginning, the rest from the end (arXiv:1905.05583, 5.3.1).

    The first `n_kept` tokens are kept besides; the quarter is of the room that they leave.
    """
    n_kept = min(n_kept, room)
    head = n_kept + (room - n_kept) // 4
    return (ids,) if len(ids) <= room else (ids[:head], ids[len(ids) - (room - head) :])


def _windows(texts: Sequence[np.ndarray], room: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Cut each text into windows of like length; return them and which text each is of."""
    windows: list[np.ndarray] = []
    owners: list[int] = []
    for text, ids in enumerate(texts):
        n_windows = max(1, math.ceil(len(ids) / room))
        bounds = [len(ids) * i // n_windows for i in range(n_windows + 1)]
        windows.extend(ids[start:stop] for start, stop in pairwise(bounds))
        owners.extend([text] * n_windows)
    return windows, np.array(owners, np.int64)


def assemble(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray] | None,
    prefix: list[int],
    middle: list[int],
    suffix: list[int],
    max_length: int,
    long_text: str,
    n_kept: int = 0,
) -> TokenBatch:
    """Truncate or cut, put the special tokens round and flatten: the TokenBatch of some texts or pairs.

    Parameters
    ----------
    first, second : sequences of ndarray of int32
        The ids of each text.
    """
    n_special = len(prefix) + len(suffix) + (0 if second is None else len(middle))
    room = max_length - n_special
    if room < 1:
        raise ValueError(f"max_length={max_length} leaves no room for text: use at least {n_special + 1}.")
    full = _lengths(first) + n_special
    if second is not None:
        full += _lengths(second)
    before, between, behind = (np.array(ids, np.int32) for ids in (prefix, middle, suffix))
    lengths = np.minimum(full, max_length)
    text_of_sequence, second_starts = None, None
    if second is not None:
        pairs = [_truncate_pair(a, b, room, n_kept) for a, b in zip(first, second, strict=True)]
        parts = [part for a, b in pairs for part in (before, a, between, b, behind)]
        second_starts = _lengths([a for a, _ in pairs]) + len(prefix) + 1
    elif long_text == "chunk_mean" and full.max(initial=0) > max_length:
        windows, text_of_sequence = _windows(first, room)
        parts = [part for ids in windows for part in (before, ids, behind)]
        lengths = _lengths(windows) + n_special
    elif long_text == "head_tail":
        parts = [part for ids in first for part in (before, *_head_and_tail(ids, room, n_kept), behind)]
    else:
        parts = [part for ids in first for part in (before, ids[:room], behind)]
    input_ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return TokenBatch(input_ids, lengths, full, text_of_sequence, second_starts)


def _lengths(sequences: Sequence[np.ndarray]) -> np.ndarray:
    return np.fromiter(map(len, sequences), np.int64, len(sequences))
