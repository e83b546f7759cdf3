"""Other vocabularies than XLM-R's, on the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .token_batch import LocatedTokens, TokenBatch
from .token_limits import assemble

_PROBES = ("a", "1", ".", "の", "я")


class LibraryTokenizer:
    """Any ``tokenizer.json``, run by the ``tokenizers`` library. Single texts only.

    Parameters
    ----------
    serialized : str
        The content of the file.
    n_rows : int or None
        Word embeddings of the network: an id that has none is an error.
    """

    pair_template = None

    def __init__(self, serialized: str, n_rows: int | None = None) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._prefix, self._suffix = self._special_ids()
        self._n_rows = n_rows

    def _special_ids(self) -> tuple[list[int], list[int]]:
        for text in _PROBES:
            probe = self._tokenizer.encode(text)
            places = [place for place, special in enumerate(probe.special_tokens_mask) if not special]
            if places:
                return probe.ids[: places[0]], probe.ids[places[-1] + 1 :]
        raise ValueError(f"it makes no token of any of {_PROBES}")

    def state(self) -> tuple[str, bytes]:
        """Return what :func:`restore_tokenizer` takes."""
        return "tokenizers", self._tokenizer.to_str().encode()

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        max_length: int,
        long_text: str = "truncate",
        n_kept: int = 0,
    ) -> TokenBatch:
        """Return the ids of texts. See :class:`Tokenizer`."""
        if second is not None:
            raise _no_pairs()
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        batch = assemble(ids, None, self._prefix, [], self._suffix, max_length, long_text, n_kept)
        largest = int(batch.input_ids.max(initial=0))
        if self._n_rows is not None and largest >= self._n_rows:
            raise ValueError(
                f"The tokenizer gives the id {largest}, and the network has {self._n_rows} word embeddings: they do not "
                "belong together. Download both from one repository."
            )
        return batch

    def locate(self, texts: Sequence[str]) -> list[LocatedTokens]:
        """Raise an error: without pairs there are no places to look for."""
        raise _no_pairs()


def _no_pairs() -> ValueError:
    # BERT's own vocabulary tells the two texts apart by token types, which the packed engine does not have.
    return ValueError(
        "Sentence pairs need a checkpoint with XLM-R's vocabulary; this one has another. "
        "Join the two columns into one text, or use model='bundled'; a network that others fine-tuned on pairs needs "
        "transformers itself (CrossEncoder, pipeline)."
    )
