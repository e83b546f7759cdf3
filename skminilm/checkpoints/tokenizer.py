"""The tokenizer of a checkpoint: read from its files, restored from its state, compared with the original."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, read_json
from .layout import find_transformer
from .library_tokenizer import LibraryTokenizer
from .sentencepiece_tokenizer import (
    MASK,
    PAD,
    SPECIAL,
    SentencePieceTokenizer,
    build_model_proto,
    has_size_of_xlmr,
)
from .token_batch import Tokenizer

TOKENIZER_FILES = ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt")
"""What a folder may hold, in the order of preference."""

_SPACES = ("two  spaces", " one before", "one after ")
_SETTINGS_FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_SPECIAL_ROLES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": MASK,
}
_NORMALIZERS_LIKE_XLMR = {"Precompiled", "Nmt", "NFKC", "Replace", "Strip"}


def read_tokenizer(folder: Path, n_rows: int | None = None) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    XLM-R's runs on SentencePiece: from ``sentencepiece.bpe.model``, or as
    ``tokenizer.json`` holds it; where both are there and differ, the latter
    counts, as in transformers. Any other is what transformers makes of the
    folder's files; `n_rows` is that of :class:`LibraryTokenizer`.

    Raises
    ------
    OSError
        The folder has no tokenizer file that can be read.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise OSError(
            f"No tokenizer in {folder}: expected {', '.join(TOKENIZER_FILES[:-1])} or {TOKENIZER_FILES[-1]}. "
            "Copy one of them from the repository that the weights came from."
        )
    content = read_json(folder / "tokenizer.json") or {}
    try:
        tokenizer = None if _adds_tokens(folder, content) else _read_sentencepiece(folder, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder / "tokenizer.json", error) from error
    return tokenizer or _read_with_transformers(folder, n_rows)


def tokenizer_files(folder: Path, tokenizer: Tokenizer) -> list[Path]:
    """Return the files that the ids of a tokenizer of a folder depend on."""
    settings = _SETTINGS_FILES if isinstance(tokenizer, LibraryTokenizer) else ()
    names = (*TOKENIZER_FILES, *settings)
    return [folder / name for name in names if (folder / name).is_file()]


def _read_sentencepiece(folder: Path, content: dict) -> SentencePieceTokenizer | None:
    model_file = folder / "sentencepiece.bpe.model"
    if not model_file.is_file():
        return _unigram_from_json(content)
    try:
        tokenizer = SentencePieceTokenizer(model_file.read_bytes())
    except RuntimeError as error:
        raise OSError(f"{model_file} is not a SentencePiece model ({error}). Download it again.") from error
    # XLM-R's own is compared with the original's ids, see verify_golden_ids.
    both_are_xlmr = tokenizer.is_xlmr and has_size_of_xlmr(len(content.get("model", {}).get("vocab") or ()))
    if not content or both_are_xlmr or _agree(tokenizer, content):
        return tokenizer
    return _unigram_from_json(content)


def _read_with_transformers(folder: Path, n_rows: int | None) -> LibraryTokenizer:
    # Settings beside the vocabulary count too: transformers knows which, and for which class.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return LibraryTokenizer(tokenizer.backend_tokenizer.to_str(), n_rows)
    except Exception as error:  # the library raises plain Exception
        found = next(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
        raise _unreadable(found, error) from error


def _unreadable(path: Path, error: Exception) -> OSError:
    return OSError(f"{path} cannot be read ({error}). Download it again, with the files beside it.")


def _adds_tokens(folder: Path, content: dict) -> bool:
    """Tell whether other tokens than XLM-R's stand beside its vocabulary."""
    settings = read_json(folder / "tokenizer_config.json") or {}
    tokens = [*(content.get("added_tokens") or ()), *(settings.get("added_tokens_decoder") or {}).values()]
    added = {token.get("content") for token in tokens}
    return not added.union(read_json(folder / "added_tokens.json") or {}) <= {*SPECIAL, MASK}


def verify_golden_ids(tokenizer: Tokenizer, name: str) -> None:
    """Compare a tokenizer with the ids that XLM-R's original gives.

    Raises
    ------
    ValueError
        Some probe differs. The message shows the first one.
    """
    golden = _golden_ids()
    probes = [(probe["text"], None, probe["ids"]) for probe in golden["single"]]
    if tokenizer.pair_template is not None:
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


def _unigram_from_json(content: dict) -> SentencePieceTokenizer | None:
    """Rebuild the SentencePiece model from a ``tokenizer.json`` of XLM-R's kind; None for another."""
    vocabulary = content.get("model", {}).get("vocab") or []
    if not isinstance(vocabulary, list) or [row[0] for row in vocabulary[: len(SPECIAL)]] != SPECIAL:
        return None
    pieces = vocabulary[len(SPECIAL) :]
    if pieces and pieces[-1][0] == MASK:
        pieces = pieces[:-1]
    normalizer = content.get("normalizer") or {}
    steps = {step.get("type"): step for step in normalizer.get("normalizers", [normalizer])}
    if not steps.keys() <= {*_NORMALIZERS_LIKE_XLMR, None}:
        return None
    charsmap = steps["Precompiled"]["precompiled_charsmap"] if "Precompiled" in steps else None
    tokenizer = SentencePieceTokenizer(
        build_model_proto(
            [piece.encode() for piece, _ in pieces],
            [score for _, score in pieces],
            base64.b64decode(charsmap) if charsmap else None,
        )
    )
    # XLM-R's own is compared with the original's ids (verify_golden_ids), whatever its file says.
    return tokenizer if has_size_of_xlmr(len(pieces)) or _agree(tokenizer, content) else None


def _agree(tokenizer: SentencePieceTokenizer, content: dict, more: Sequence[str] = ()) -> bool:
    """Tell whether a rebuilt tokenizer gives the ids of the library's, for texts in many scripts and `more`."""
    texts = [*(probe["text"] for probe in _golden_ids()["single"]), *more]
    try:
        library_tokenizer = LibraryTokenizer(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(str(error)) from error
    both = tokenizer, library_tokenizer
    ids = [one.encode(texts, max_length=512).input_ids.tolist() for one in both]
    return ids[0] == ids[1]


def write_tokenizer(folder: Path, checkpoint: Checkpoint) -> int | None:
    """Write the tokenizer of a checkpoint into a folder, as transformers reads it beside a network of the type BERT.

    Returns the id of the token for padding; None where there is none.

    Raises
    ------
    ValueError
        It has another vocabulary than XLM-R's, and the files beside the vocabulary are not there or do not suffice.
    """
    tokenizer = checkpoint.tokenizer
    origin = None if checkpoint.folder is None else find_transformer(checkpoint.folder)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        if origin is None:
            raise ValueError(
                f"The tokenizer of {checkpoint.name!r} was kept without what transformers needs to know of it: do this "
                "where the checkpoint's own files are."
            )
        from transformers import AutoTokenizer

        of_library = AutoTokenizer.from_pretrained(str(origin), local_files_only=True)
        of_library.save_pretrained(str(folder))
        return of_library.pad_token_id
    settings: dict[str, Any] = {"model_max_length": checkpoint.config.max_position_embeddings}
    if origin is None:
        (folder / TOKENIZER_FILES[0]).write_bytes(tokenizer.state()[1])
    else:
        for name in (*TOKENIZER_FILES, *_SETTINGS_FILES):
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)
        settings |= read_json(origin / "tokenizer_config.json") or {}
    if not (folder / "tokenizer.json").is_file():
        # transformers reads a SentencePiece model only where the package protobuf is there.
        content = tokenizer.library_json()
        if not _agree(tokenizer, json.loads(content), _SPACES):
            raise ValueError(
                f"The vocabulary of {checkpoint.name!r} is a SentencePiece model of another kind than XLM-R's, which "
                "tokenizer.json cannot say: put a tokenizer.json of its authors beside it, and fit again."
            )
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    # The class that takes tokenizer.json as it is: otherwise the type of the network decides, or XLM-R's class, which
    # makes a normaliser of its own.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL_ROLES}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return PAD


def _golden_ids() -> dict:
    return json.loads(files(__package__).joinpath("golden_token_ids.json").read_text(encoding="utf-8"))


def restore_tokenizer(kind: str, state: bytes, n_rows: int) -> Tokenizer:
    """Return the tokenizer whose ``state()`` this is; `n_rows` is that of :class:`LibraryTokenizer`."""
    if kind == "sentencepiece":
        return SentencePieceTokenizer(state)
    return LibraryTokenizer(state.decode(), n_rows)
