"""Questions with windows of their contexts, as sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ._answers import Answer
from ._validation import Texts, is_blank
from .checkpoints.token_batch import LocatedTokens, TokenBatch, Tokenizer


@dataclass(frozen=True)
class Windows:
    """Questions with windows of their contexts, as sequences of tokens.

    Attributes
    ----------
    batch : TokenBatch
        One sequence per window; `text_of_sequence` says of which row it is.
    context_starts, context_stops : ndarray of int64, shape (n_windows,)
        Which tokens of each sequence are the context.
    own_starts, own_stops : ndarray of int64, shape (n_windows,)
        Where an answer may begin that is looked for in this window: each
        token of a context is so in one of its windows alone, the one that
        shows more of what is round it.
    first_tokens : ndarray of int64, shape (n_windows,)
        Which token of the context a window begins with.
    contexts : list of LocatedTokens
        Of the rows.
    is_cut : ndarray of bool, shape (n_rows,)
        Whether the question was too long, and was cut off.
    """

    batch: TokenBatch
    context_starts: np.ndarray
    context_stops: np.ndarray
    own_starts: np.ndarray
    own_stops: np.ndarray
    first_tokens: np.ndarray
    contexts: list[LocatedTokens]
    is_cut: np.ndarray

    def targets(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """Return what ``finetuning.SpanObjective`` learns: int64 (n_windows, 5).

        A window that does not hold the whole answer of its row has none: 0 and 0.
        """
        n_windows = len(self.first_tokens)
        spans = np.zeros((n_windows, 2), np.int64)
        for window, row in enumerate(self.batch.text_of_sequence):
            answer = answers[row]
            if answer is None:
                continue
            tokens = self.contexts[row]
            first = int(np.searchsorted(tokens.stops, answer.start, side="right"))
            end = answer.start + len(answer.text)  # a token holds what is blank before it
            while is_blank(answer.text[end - answer.start - 1]):
                end -= 1
            last = int(np.searchsorted(tokens.starts, end, side="left")) - 1
            shift = self.context_starts[window] - self.first_tokens[window]
            span = np.array([first, last]) + shift
            if self.context_starts[window] <= span[0] <= span[1] < self.context_stops[window]:
                spans[window] = span
        return np.column_stack([spans, self.context_starts, self.context_stops, self.batch.lengths])

    def rows_without_answer(self, answers: Sequence[Answer | None], targets: np.ndarray) -> np.ndarray:
        """Return the rows whose answer is in no window as a whole, int64; `targets` are those of the windows."""
        has_answer = np.array([answer is not None for answer in answers])
        is_held = np.zeros(len(answers), bool)
        is_held[self.batch.text_of_sequence[targets[:, 0] > 0]] = True
        return np.flatnonzero(has_answer & ~is_held)

    def spans_an_answer(self) -> int:
        """Return how many spans of tokens may be the same characters of a context.

        Begin and end may each have a token of whitespace more, and tokens
        without characters of their own: the last of those that one character
        is read as.
        """
        longest = max((_longest_run(tokens.starts == tokens.stops) for tokens in self.contexts), default=0)
        return (2 + longest) ** 2

    def span(self, window: int, first: int, last: int, context: str) -> tuple[int, int]:
        """Return the code points [start, end) of a span of tokens of a window, without what is blank round them."""
        tokens = self.contexts[self.batch.text_of_sequence[window]]
        shift = self.first_tokens[window] - self.context_starts[window]
        start, end = int(tokens.starts[first + shift]), int(tokens.stops[last + shift])
        while start < end and is_blank(context[start]):
            start += 1
        while start < end and is_blank(context[end - 1]):
            end -= 1
        return start, end


def cut_windows(
    tokenizer: Tokenizer, texts: Texts, max_length: int, stride: int, max_answer_length: int = 1
) -> Windows:
    """Cut contexts into windows that fit together with their question.

    Parameters
    ----------
    tokenizer : Tokenizer
    texts : Texts
        Questions and contexts.
    max_length : int
        Tokens of a window with its question and the special tokens. A
        question may take half of it; the rest is cut off.
    stride : int
        Tokens that neighbouring windows share.
    max_answer_length : int, default=1
        Tokens of an answer: where one may begin that is looked for in a
        window, it should fit in.
    """
    prefix, middle, suffix = (np.array(part, np.int32) for part in tokenizer.pair_template)
    n_special = len(prefix) + len(middle) + len(suffix)
    room = max_length - n_special
    questions = _locate_each(tokenizer, texts.first)
    contexts = _locate_each(tokenizer, texts.second)
    # In what two windows share, answers begin in the earlier one as long as they fit, up to the middle.
    overhang = max(0, min(stride // 2, stride - max_answer_length))
    sequences, places, full_lengths = [], [], []
    is_cut = np.zeros(len(texts), bool)
    for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        ids = question.ids[: room // 2]
        is_cut[row] = len(ids) < len(question.ids)
        full_lengths.append(len(question.ids) + len(context.ids) + n_special)
        head = np.concatenate([prefix, ids, middle])
        size = room - len(ids)
        firsts_of_row = list(window_starts(len(context.ids), size, stride))
        bounds = [0, *(first + overhang for first in firsts_of_row[1:]), len(context.ids)]
        for first, (own_start, own_stop) in zip(firsts_of_row, pairwise(bounds), strict=True):
            part = context.ids[first : first + size]
            sequences.append(np.concatenate([head, part, suffix]))
            shift = len(head) - first
            places.append((row, len(head), len(head) + len(part), own_start + shift, own_stop + shift, first))
    rows, starts, stops, own_starts, own_stops, firsts = np.array(places, np.int64).T.copy()
    batch = TokenBatch(
        np.concatenate(sequences),
        np.fromiter(map(len, sequences), np.int64, len(sequences)),
        np.array(full_lengths, np.int64),
        rows,
    )
    return Windows(
        batch,
        context_starts=starts,
        context_stops=stops,
        own_starts=own_starts,
        own_stops=own_stops,
        first_tokens=firsts,
        contexts=contexts,
        is_cut=is_cut,
    )


def window_starts(n_tokens: int, size: int, stride: int) -> range:
    """Return where windows of `size` tokens begin that share `stride` tokens and reach the end."""
    step = max(1, size - stride)
    n_windows = 1 + max(0, -(-(n_tokens - size) // step))
    return range(0, n_windows * step, step)


def _locate_each(tokenizer: Tokenizer, texts: list[str]) -> list[LocatedTokens]:
    """Locate the tokens of each different text once."""
    position = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    located = tokenizer.locate(list(position))
    return [located[position[text]] for text in texts]


def _longest_run(flags: np.ndarray) -> int:
    """Return how many True follow each other at the most."""
    if not flags.any():
        return 0
    false = np.flatnonzero(np.concatenate([[True], ~flags, [True]]))
    return int(np.diff(false).max()) - 1
