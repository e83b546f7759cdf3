"""Texts to vectors in a steady stream: tokenised ahead, packed, computed, back in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..checkpoints import EncodingSettings, tokenize
from ..checkpoints.token_batch import TokenBatch, Tokenizer
from .hardware import return_free_memory
from .packing import plan_packs

# A chunk of texts is tokenised while the one before it is computed. The first is small, so that the
# computation starts at once; the last of them hold this many tokens, so that packs are full and their
# texts of like length. On a GPU these are few packs: it would wait for more to be tokenised.
_MAX_CHUNK_TOKENS = 262_144
_CHARACTERS_PER_TOKEN = 4
Place = TypeVar("Place")


class StreamingModel(ABC):
    """Encodes texts of any number; a subclass computes one pack of them.

    Attributes
    ----------
    tokenizer : Tokenizer
    hidden_size : int
        Columns of the vectors.
    default_batch_tokens : int
        Tokens computed at once where the caller does not say.
    max_results_under_way : int
        Packs that may be computed while others are prepared.
    survives_fork : bool
        Whether a process that is forked from this one can go on with the model, or has to build its own.
    """

    tokenizer: Tokenizer
    hidden_size: int
    default_batch_tokens: int
    max_results_under_way: int = 2
    survives_fork: bool = True

    @abstractmethod
    def start(
        self, batch: TokenBatch, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Begin to compute the vectors of the sequences `rows`, longest first; the result waits for them."""

    def plan(self, lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
        """Yield the rows that are computed together, longest first."""
        return plan_packs(lengths, max_tokens)

    def in_order(
        self, started: Iterable[tuple[Place, Callable[[], np.ndarray]]]
    ) -> Iterator[tuple[Place, np.ndarray]]:
        """Wait for the results of packs one after the other, while the next ones are computed.

        Parameters
        ----------
        started : iterable of (object, callable)
            What tells where the results of a pack belong, and what waits for
            them; see :meth:`start`. Packs are started as they are taken from
            it, so that no more than `max_results_under_way` are ahead.

        Yields
        ------
        place : object
        results : ndarray
        """
        under_way: deque[tuple[Place, Callable[[], np.ndarray]]] = deque()
        for pack in started:
            under_way.append(pack)
            if len(under_way) > self.max_results_under_way:
                place, result = under_way.popleft()
                yield place, result()
        for place, result in under_way:
            yield place, result()

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None,
        settings: EncodingSettings,
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute one vector per text.

        Parameters
        ----------
        texts, second : sequences of str
            Texts, or the two columns of sentence pairs.
        settings : EncodingSettings
        batch_tokens : int or None
            Tokens computed at once.
        progress : callable, default=None
            Called with the number of texts that were finished.

        Returns
        -------
        vectors : ndarray of float32, shape (n_texts, settings.vector_size(hidden_size))
            In the order of the texts.
        full_lengths : ndarray of int64, shape (n_texts,)
            Tokens of each text before truncation.
        """
        budget = batch_tokens or self.default_batch_tokens
        vectors = np.zeros((len(texts), settings.vector_size(self.hidden_size)), np.float32)
        full_lengths = np.empty(len(texts), np.int64)
        by_windows = settings.long_text == "chunk_mean" and second is None
        # The mean over windows is taken before the norm, as over the tokens of one.
        normalize = settings.normalize and not by_windows
        chunks = list(plan_chunks(texts, second, budget))

        def tokenize_chunk(chunk: np.ndarray) -> TokenBatch:
            first = [texts[row] for row in chunk]
            other = None if second is None else [second[row] for row in chunk]
            return tokenize(self.tokenizer, first, other, settings)

        def started() -> Iterator[tuple[tuple[np.ndarray, np.ndarray], Callable[[], np.ndarray]]]:
            for chunk, batch in _one_ahead(tokenize_chunk, iter(chunks)):
                full_lengths[chunk] = batch.full_lengths
                owners, shares = _windows_of(batch)
                for rows in self.plan(batch.lengths, budget):
                    place = chunk[owners[rows]], shares[rows]
                    yield place, self.start(batch, rows, settings.pooling, normalize)

        finished, reported = 0.0, 0
        for (rows, shares), found in self.in_order(started()):
            if by_windows:
                np.add.at(vectors, rows, found * shares[:, None])
            else:
                vectors[rows] = found
            finished += float(shares.sum())
            if progress and round(finished) > reported:
                progress(round(finished) - reported)
                reported = round(finished)
        if len(chunks) > 1:  # packs of many sizes leave the heap in pieces
            return_free_memory()
        if by_windows and settings.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, full_lengths


def _windows_of(batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return which text each sequence belongs to, and its share in that text's tokens, float32."""
    n_sequences = len(batch.lengths)
    if batch.text_of_sequence is None:
        return np.arange(n_sequences), np.ones(n_sequences, np.float32)
    owners = batch.text_of_sequence
    totals = np.bincount(owners, weights=batch.lengths)
    return owners, (batch.lengths / totals[owners]).astype(np.float32)


def plan_chunks(
    texts: Sequence[str], second: Sequence[str] | None, batch_tokens: int
) -> Iterator[np.ndarray]:
    """Yield the rows of each chunk, longest texts first, in chunks that grow."""
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    if second is not None:
        characters += np.fromiter(map(len, second), np.int64, len(texts))
    order = np.argsort(-characters, kind="stable")
    ends = np.cumsum(characters[order])
    start, done, packs = 0, 0, 1
    while start < len(order):
        size = packs * batch_tokens * _CHARACTERS_PER_TOKEN
        stop = max(start + 1, int(np.searchsorted(ends, done + size, side="right")))
        if ends[-1] - ends[stop - 1] < size / 2:  # a small rest is no chunk of its own
            stop = len(order)
        yield order[start:stop]
        start, done = stop, int(ends[stop - 1])
        packs = max(1, min(2 * packs, _MAX_CHUNK_TOKENS // batch_tokens))


def _one_ahead(
    tokenize_chunk: Callable[[np.ndarray], TokenBatch], chunks: Iterator[np.ndarray]
) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """Yield each chunk and its tokens; the next one is tokenised by a thread meanwhile."""
    chunk = next(chunks, None)
    if chunk is None:
        return
    batch = tokenize_chunk(chunk)
    following = next(chunks, None)
    if following is None:  # a thread would cost more than it hides
        yield chunk, batch
        return
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
        while following is not None:
            future: Future[TokenBatch] = pool.submit(tokenize_chunk, following)
            yield chunk, batch
            chunk, following, batch = following, next(chunks, None), future.result()
        yield chunk, batch
