"""Token ids of many texts, and what gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of many texts, one after the other, special tokens included.

    Attributes
    ----------
    input_ids : ndarray of int32, shape (n_tokens,)
    lengths : ndarray of int64, shape (n_sequences,)
    full_lengths : ndarray of int64, shape (n_texts,)
        Of each text before truncation.
    text_of_sequence : ndarray of int64, shape (n_sequences,), or None
        Which text each sequence is a window of; None where each text is one
        sequence.
    second_starts : ndarray of int64, shape (n_sequences,), or None
        Where the second text of each pair begins, behind the special token
        that ends the first; None where there are no pairs.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    full_lengths: np.ndarray
    text_of_sequence: np.ndarray | None = None
    second_starts: np.ndarray | None = None

    @property
    def offsets(self) -> np.ndarray:
        """Where each sequence begins and the last ends, int64 (n_sequences + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def take(self, sequences: np.ndarray) -> TokenBatch:
        """Return some sequences, each as a text of its own."""
        offsets = self.offsets
        parts = [self.input_ids[offsets[i] : offsets[i + 1]] for i in sequences]
        return TokenBatch(np.concatenate(parts), self.lengths[sequences], self.lengths[sequences])

    def join(self, other: TokenBatch) -> TokenBatch:
        """Return the sequences of both, each as a text of its own."""
        lengths = np.concatenate([self.lengths, other.lengths])
        return TokenBatch(np.concatenate([self.input_ids, other.input_ids]), lengths, lengths)


@dataclass(frozen=True)
class LocatedTokens:
    """The tokens of a text, without special ones, and where each is in it.

    Attributes
    ----------
    ids : ndarray of int32, shape (n_tokens,)
    starts, stops : ndarray of int64, shape (n_tokens,)
        ``text[starts[i]:stops[i]]`` is what token i stands for, with the
        whitespace before it.
    """

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer.

    Attributes
    ----------
    pair_template : tuple of three lists of int, or None
        The special tokens before, between and after the sequences of a pair;
        None where pairs are not for the vocabulary.
    """

    pair_template: tuple[list[int], list[int], list[int]] | None

    def locate(self, texts: Sequence[str]) -> list[LocatedTokens]:
        """Return the tokens of each text, with their places; where there are pairs."""

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        max_length: int,
        long_text: str = "truncate",
        n_kept: int = 0,
    ) -> TokenBatch:
        """Return the ids of texts, or of the pairs (texts[i], second[i]).

        What has more than `max_length` tokens keeps its beginning
        (``"truncate"``), its beginning and end (``"head_tail"``), or becomes
        several sequences (``"chunk_mean"``). Pairs are truncated always. The
        first `n_kept` tokens, those of a prompt, are kept.
        """
