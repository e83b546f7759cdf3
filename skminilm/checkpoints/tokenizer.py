"""Texts to token ids.

XLM-R's vocabulary runs on SentencePiece, which the networks of the family
were trained with and which is several times faster than the alternatives.
Other vocabularies run on the ``tokenizers`` library.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

TOKENIZER_FILES = ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt")
"""What a folder may hold, in the order of preference."""

XLMR_VOCABULARY = 250_002
"""Pieces of XLM-R's vocabulary; checkpoints of the family have this many rows or a few more."""

_BOS, _PAD, _EOS, _UNK = 0, 1, 2, 3

# SentencePiece 0.2.3 normalises with newer Unicode rules than XLM-R was trained
# with. These code points had no rule then (so they were unknown), but U+200D,
# which was a space. A private-use code point, unknown too, stands in for them.
_NEWER_RULES = (
    (0x061C, 0x061C),
    (0x32FF, 0x32FF),
    (0xA7F1, 0xA7F4),
    (0xAB69, 0xAB69),
    (0x10781, 0x10785),
    (0x10787, 0x107B0),
    (0x107B2, 0x107BA),
    (0x1CCD6, 0x1CCF9),
    (0x1E030, 0x1E06D),
    (0x1F16C, 0x1F16C),
    (0x1F23B, 0x1F23B),
    (0x1FBF0, 0x1FBF9),
)
_CHANGED = re.compile("[\u200d" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _NEWER_RULES) + "]")
_TEXTS_PER_THREAD = 64


def _original_rule(match: re.Match[str]) -> str:
    return " " if match.group() == "\u200d" else "\U0010fffd"


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
    ) -> TokenBatch:
        """Return the ids of texts, or of the pairs (texts[i], second[i]).

        What has more than `max_length` tokens keeps its beginning
        (``"truncate"``), its beginning and end (``"head_tail"``), or becomes
        several sequences (``"chunk_mean"``). Pairs are truncated always.
        """


def _truncate_pair(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut the longer of two sequences, token by token, until both fit (longest first)."""
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
    return first[:keep_first], second[:keep_second]


def _head_and_tail(ids: list[int], room: int) -> list[int]:
    """Keep a quarter of the room from the beginning, the rest from the end (arXiv:1905.05583, 5.3.1)."""
    head = room // 4
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


def _assemble(
    first: list[list[int]],
    second: list[list[int]] | None,
    prefix: list[int],
    middle: list[int],
    suffix: list[int],
    max_length: int,
    long_text: str,
) -> TokenBatch:
    """Truncate or cut, put the special tokens round and flatten."""
    n_special = len(prefix) + len(suffix) + (0 if second is None else len(middle))
    room = max_length - n_special
    if room < 1:
        raise ValueError(f"max_length={max_length} leaves no room for text: use at least {n_special + 1}.")
    full = np.fromiter(map(len, first), np.int64, len(first)) + n_special
    text_of_sequence, second_starts = None, None
    if second is not None:
        full += np.fromiter(map(len, second), np.int64, len(second))
        pairs = [_truncate_pair(a, b, room) for a, b in zip(first, second, strict=True)]
        rows = [[*a, *middle, *b] for a, b in pairs]
        second_starts = np.fromiter((len(a) for a, _ in pairs), np.int64, len(pairs)) + len(prefix) + 1
    elif long_text == "chunk_mean" and full.max(initial=0) > max_length:
        rows, text_of_sequence = _windows(first, room)
    elif long_text == "head_tail":
        rows = [_head_and_tail(ids, room) for ids in first]
    else:
        rows = [ids if len(ids) <= room else ids[:room] for ids in first]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + len(prefix) + len(suffix)
    parts = chain.from_iterable(chain(prefix, ids, suffix) for ids in rows)
    input_ids = np.fromiter(parts, np.int32, int(lengths.sum()))
    return TokenBatch(input_ids, lengths, full, text_of_sequence, second_starts)


class SentencePieceTokenizer:
    """XLM-R's tokenizer on SentencePiece: ``<s> text </s>``, ``<s> A </s></s> B </s>``.

    Parameters
    ----------
    model_proto : bytes
        A serialised SentencePiece model. XLM-R's may bring its own normaliser
        or SentencePiece's: newer Unicode rules are undone.
    """

    pair_template = ([_BOS], [_EOS, _EOS], [_EOS])

    def __init__(self, model_proto: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        # <s> <pad> </s> <unk> <mask> are not all among the pieces of the model.
        self._is_xlmr = self._processor.get_piece_size() >= XLMR_VOCABULARY - 5

    def state(self) -> tuple[str, bytes]:
        """Return what :func:`restore_tokenizer` takes."""
        return "sentencepiece", self._processor.serialized_model_proto()

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        max_length: int,
        long_text: str = "truncate",
    ) -> TokenBatch:
        """Return the ids of texts, or of pairs. See :class:`Tokenizer`."""
        pieces = self._pieces(texts)
        second_pieces = None if second is None else self._pieces(second)
        return _assemble(pieces, second_pieces, *self.pair_template, max_length, long_text)

    def locate(self, texts: Sequence[str]) -> list[LocatedTokens]:
        """Return the tokens of each text, with their places. See :class:`Tokenizer`."""
        # One code point stands in for another, so that places stay.
        encoded = self._encode(texts, "offset_mapping")
        located = []
        for text in encoded:
            pieces = np.array(text["ids"], np.int32)
            places = np.array(text["offsets"], np.int64).reshape(-1, 2)
            located.append(LocatedTokens(np.where(pieces, pieces + 1, _UNK), places[:, 0], places[:, 1]))
        return located

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        # SentencePiece counts <unk> <s> </s> first, fairseq <s> <pad> </s> <unk>.
        return [[piece + 1 if piece else _UNK for piece in pieces] for pieces in self._encode(texts, int)]

    def _encode(self, texts: Sequence[str], out_type: type | str) -> list:
        if self._is_xlmr:
            texts = [text if text.isascii() else _CHANGED.sub(_original_rule, text) for text in texts]
        if len(texts) < _TEXTS_PER_THREAD:  # waking a thread takes longer, milliseconds on a busy machine
            return [self._processor.encode(text, out_type=out_type) for text in texts]
        threads = min(os.cpu_count() or 1, 1 + len(texts) // _TEXTS_PER_THREAD)
        return self._processor.encode(list(texts), out_type=out_type, num_threads=threads)


class LibraryTokenizer:
    """Any ``tokenizer.json``, run by the ``tokenizers`` library. Single texts only."""

    pair_template = None

    def __init__(self, serialized: str) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        special = self._tokenizer.encode("").ids
        middle = len(special) // 2 + len(special) % 2
        self._prefix, self._suffix = special[:middle], special[middle:]

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
    ) -> TokenBatch:
        """Return the ids of texts. See :class:`Tokenizer`."""
        if second is not None:
            raise _no_pairs()
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        return _assemble(ids, None, self._prefix, [], self._suffix, max_length, long_text)

    def locate(self, texts: Sequence[str]) -> list[LocatedTokens]:
        """Raise an error: without pairs there are no places to look for."""
        raise _no_pairs()


def _no_pairs() -> ValueError:
    # BERT's own vocabulary tells the two texts apart by token types, which the packed engine does not have.
    return ValueError(
        "Sentence pairs need a checkpoint with XLM-R's vocabulary; this one has another. "
        "Join the two columns into one text, or use model='bundled'."
    )


def restore_tokenizer(kind: str, state: bytes) -> Tokenizer:
    """Return the tokenizer whose ``state()`` this is."""
    if kind == "sentencepiece":
        return SentencePieceTokenizer(state)
    return LibraryTokenizer(state.decode())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def build_model_proto(
    pieces: Sequence[bytes], scores: Sequence[float], precompiled_charsmap: bytes | None = None
) -> bytes:
    """Serialise a SentencePiece Unigram model (``sentencepiece_model.proto``).

    Parameters
    ----------
    pieces, scores : sequences of the same length
        The ordinary pieces in the order of their ids, without ``<unk>``,
        ``<s>`` and ``</s>``, which are put before them.
    precompiled_charsmap : bytes or None
        The compiled normaliser; None takes SentencePiece's ``nmt_nfkc``.

    Returns
    -------
    bytes
    """
    pack_score = struct.Struct("<f").pack

    def message(piece: bytes, score: float, extra: bytes = b"") -> bytes:
        body = b"\x0a" + _varint(len(piece)) + piece + b"\x15" + pack_score(score) + extra
        return b"\x0a" + _varint(len(body)) + body

    proto = [message(b"<unk>", 0.0, b"\x18\x02"), message(b"<s>", 0.0, b"\x18\x03")]
    proto.append(message(b"</s>", 0.0, b"\x18\x03"))
    proto.extend(map(message, pieces, scores))
    if precompiled_charsmap is None:
        import sentencepiece

        # A model proto that holds only its normaliser; concatenation merges messages.
        normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
        proto.append(normalizer.serialized_model_proto())
    else:
        spec = b"\x12" + _varint(len(precompiled_charsmap)) + precompiled_charsmap
        proto.append(b"\x1a" + _varint(len(spec)) + spec)
    # add_dummy_prefix, remove_extra_whitespaces and escape_whitespaces: true, whatever the default.
    proto.append(b"\x1a\x06\x18\x01\x20\x01\x28\x01")
    return b"".join(proto)


def _unigram_from_json(serialized: str) -> SentencePieceTokenizer | None:
    """Rebuild XLM-R's SentencePiece model from a ``tokenizer.json`` that holds it."""
    content = json.loads(serialized)
    model = content.get("model", {})
    vocabulary = model.get("vocab") or []
    if not isinstance(vocabulary, list) or [row[0] for row in vocabulary[:4]] != [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
    ]:
        return None
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    charsmap = next(
        (step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), None
    )
    ordinary = [row for row in vocabulary[4:] if row[0] != "<mask>"]
    proto = build_model_proto(
        [piece.encode() for piece, _ in ordinary],
        [score for _, score in ordinary],
        base64.b64decode(charsmap) if charsmap else None,
    )
    return SentencePieceTokenizer(proto)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    A SentencePiece model is preferred, then ``tokenizer.json``, then a plain
    ``vocab.txt``.

    Raises
    ------
    OSError
        The folder has no tokenizer file that can be read.
    """
    model_file = folder / "sentencepiece.bpe.model"
    if model_file.is_file():
        try:
            return SentencePieceTokenizer(model_file.read_bytes())
        except RuntimeError as error:
            raise OSError(
                f"{model_file} is not a SentencePiece model ({error}). Download it again."
            ) from error
    json_file = folder / "tokenizer.json"
    if json_file.is_file():
        try:
            serialized = json_file.read_text(encoding="utf-8")
            return _unigram_from_json(serialized) or LibraryTokenizer(serialized)
        except Exception as error:  # the library raises plain Exception
            raise OSError(f"{json_file} cannot be read ({error}). Download it again.") from error
    if (folder / "vocab.txt").is_file():
        from transformers import BertTokenizerFast

        fast = BertTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        return LibraryTokenizer(fast.backend_tokenizer.to_str())
    raise OSError(
        f"No tokenizer in {folder}: expected {', '.join(TOKENIZER_FILES[:-1])} or {TOKENIZER_FILES[-1]}. "
        "Copy one of them from the repository that the weights came from."
    )


def verify_golden_ids(tokenizer: Tokenizer, name: str) -> None:
    """Compare a tokenizer with the ids that XLM-R's original gives.

    Raises
    ------
    ValueError
        Some probe differs. The message shows the first one.
    """
    golden = json.loads(Path(__file__).with_name("golden_token_ids.json").read_text(encoding="utf-8"))
    probes = [(probe["text"], None, probe["ids"]) for probe in golden["single"]]
    probes += [(probe["a"], probe["b"], probe["ids"]) for probe in golden["pair"]]
    for text, second, expected in probes:
        batch = tokenizer.encode([text], None if second is None else [second], max_length=512)
        found = batch.input_ids.tolist()
        if found != expected:
            probe = repr(text) if second is None else f"the pair {text!r}, {second!r}"
            raise ValueError(
                f"The tokenizer of {name} is not the one that its weights were trained with: "
                f"{probe} gives the ids {found}, expected {expected}. Its vectors would be wrong. "
                "Use the sentencepiece.bpe.model of the original repository."
            )
