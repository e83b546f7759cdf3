"""From the tokens of each text to sequences that a network takes: none is too long."""

from __future__ import annotations

import math
from itertools import chain, pairwise

import numpy as np

from .token_batch import TokenBatch


def _truncate_pair(
    first: list[int], second: list[int], room: int, n_kept: int
) -> tuple[list[int], list[int]]:
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


def _head_and_tail(ids: list[int], room: int, n_kept: int) -> list[int]:
    """Keep a quarter of the room from the beginning, the rest from the end (arXiv:1905.05583, 5.3.1).

    The first `n_kept` tokens are kept besides; the quarter is of the room that they leave.
    """
    n_kept = min(n_kept, room)
    head = n_kept + (room - n_kept) // 4
    return ids if len(ids) <= room else ids[:head] + ids[len(ids) - (room - head) :]


def _windows(texts: list[list[int]], room: int) -> tuple[list[list[int]], np.ndarray]:
    """Cut each text into windows of like length; return them and which text each is of."""
    windows, owners = [], []
    for text, ids in enumerate(texts):
        n_windows = max(1, math.ceil(len(ids) / room))
        bounds = [len(ids) * i // n_windows for i in range(n_windows + 1)]
        windows.extend(ids[start:stop] for start, stop in pairwise(bounds))
        owners.extend([text] * n_windows)
    return windows, np.array(owners, np.int64)


def assemble(
    first: list[list[int]],
    second: list[list[int]] | None,
    prefix: list[int],
    middle: list[int],
    suffix: list[int],
    max_length: int,
    long_text: str,
    n_kept: int = 0,
) -> TokenBatch:
    """Truncate or cut, put the special tokens round and flatten: the TokenBatch of some texts or pairs."""
    n_special = len(prefix) + len(suffix) + (0 if second is None else len(middle))
    room = max_length - n_special
    if room < 1:
        raise ValueError(f"max_length={max_length} leaves no room for text: use at least {n_special + 1}.")
    full = np.fromiter(map(len, first), np.int64, len(first)) + n_special
    text_of_sequence, second_starts = None, None
    if second is not None:
        full += np.fromiter(map(len, second), np.int64, len(second))
        pairs = [_truncate_pair(a, b, room, n_kept) for a, b in zip(first, second, strict=True)]
        rows = [[*a, *middle, *b] for a, b in pairs]
        second_starts = np.fromiter((len(a) for a, _ in pairs), np.int64, len(pairs)) + len(prefix) + 1
    elif long_text == "chunk_mean" and full.max(initial=0) > max_length:
        rows, text_of_sequence = _windows(first, room)
    elif long_text == "head_tail":
        rows = [_head_and_tail(ids, room, n_kept) for ids in first]
    else:
        rows = [ids if len(ids) <= room else ids[:room] for ids in first]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + len(prefix) + len(suffix)
    parts = chain.from_iterable(chain(prefix, ids, suffix) for ids in rows)
    input_ids = np.fromiter(parts, np.int32, int(lengths.sum()))
    return TokenBatch(input_ids, lengths, full, text_of_sequence, second_starts)
