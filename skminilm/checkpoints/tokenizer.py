"""The tokenizer of a checkpoint: read from its files, restored from its state, compared with the original."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from .library_tokenizer import LibraryTokenizer
from .sentencepiece_tokenizer import SentencePieceTokenizer, build_model_proto
from .token_batch import Tokenizer

TOKENIZER_FILES = ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt")
"""What a folder may hold, in the order of preference."""


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


def restore_tokenizer(kind: str, state: bytes) -> Tokenizer:
    """Return the tokenizer whose ``state()`` this is."""
    if kind == "sentencepiece":
        return SentencePieceTokenizer(state)
    return LibraryTokenizer(state.decode())
