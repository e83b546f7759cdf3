"""Token ids of many texts, and what gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from .checkpoint import EncodingSettings


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

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each sequence begins and the last ends, int64 (n_sequences + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def take(self, sequences: np.ndarray) -> TokenBatch:
        """Return some sequences, each as a text of its own."""
        lengths = self.lengths[sequences]
        return TokenBatch(self.ids_of(sequences), lengths, lengths)

    def ids_of(self, sequences: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the token ids of some sequences, one after the other."""
        starts = self.offsets[sequences]
        places = zip(starts.tolist(), (starts + self.lengths[sequences]).tolist(), strict=True)
        return np.concatenate([self.input_ids[start:stop] for start, stop in places])

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
    """What the engine needs of a tokenizer."""

    @property
    def pair_template(self) -> tuple[list[int], list[int], list[int]] | None:
        """The special tokens before, between and after the sequences of a pair; None: pairs are not for the vocabulary."""

    def state(self) -> tuple[str, bytes]:
        """Return what :func:`restore_tokenizer` takes."""

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


def tokenize(
    tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str] | None, settings: EncodingSettings
) -> TokenBatch:
    """Return the token ids of texts or pairs, the prompt before each (first) text.

    Raises
    ------
    ValueError
        The prompt is as long as a text may be, or no valid Unicode.
    """
    limits: dict[str, Any] = {"max_length": settings.max_length, "long_text": settings.long_text}
    if settings.prompt:

        def lengths(text: str) -> int:
            return tokenizer.encode([text], None if second is None else [""], **limits).full_lengths[0]

        n_tokens = check_prompt(settings.prompt, settings.max_length, lengths)
        if second is not None or settings.long_text == "head_tail":  # else the beginning is kept anyway
            limits["n_kept"] = n_tokens - lengths("")
        first = [settings.prompt + text for text in first]
    batch = tokenizer.encode(first, second, **limits)
    _check_some_tokens(batch.full_lengths, first)
    return batch


def _check_some_tokens(n_tokens: np.ndarray, texts: Sequence[str]) -> None:
    """Raise ValueError where a text has no token, for which there are no states."""
    if len(n_tokens) and not n_tokens.all():
        text = texts[int(np.flatnonzero(n_tokens == 0)[0])]
        raise ValueError(
            f"The tokenizer of this checkpoint makes no token of the text {text!r}, so that it has no vector: leave it "
            "out."
        )


def check_prompt(prompt: str, max_length: int, count_tokens: Callable[[str], int]) -> int:
    """Return the tokens of a prompt; raise ValueError if it is as long as a text may be, or no valid Unicode."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt={prompt!r} is not valid Unicode: it holds a lone surrogate at position {error.start}."
        ) from error
    n_tokens = count_tokens(prompt)
    if n_tokens >= max_length:
        raise ValueError(
            f"max_length={max_length} leaves no room for text behind the prompt {prompt!r}, which takes {n_tokens} "
            "tokens with the special ones: raise max_length, or set another prompt (None for none)."
        )
    return n_tokens
