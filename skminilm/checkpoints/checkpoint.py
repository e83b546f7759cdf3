"""What every checkpoint source hands to the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .token_batch import TokenBatch, Tokenizer

POOLINGS = ("mean", "cls", "max")
PAIR = "pair"  # compares the two texts of a pair; for fine-tuning
LONG_TEXTS = ("truncate", "head_tail", "chunk_mean")
SHARD_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ("model.safetensors", SHARD_INDEX, "pytorch_model.bin")  # in the order of preference
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder, as in the ``config.json`` of transformers."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @property
    def head_size(self) -> int:
        """Numbers of a query of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Read the fields of a ``config.json``; the defaults are transformers'."""
        if int(config["num_attention_heads"]) < 1:
            raise ValueError(f"num_attention_heads is {config['num_attention_heads']}")
        return cls(
            hidden_size=int(config["hidden_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=int(config["num_attention_heads"]),
            intermediate_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            max_position_embeddings=int(config.get("max_position_embeddings", 512)),
            type_vocab_size=int(config.get("type_vocab_size", 2)),
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        )


@dataclass(frozen=True)
class EncodingSettings:
    """What turns a text into its vector, besides the weights."""

    pooling: str
    normalize: bool
    prompt: str
    max_length: int
    long_text: str = "truncate"

    def vector_size(self, hidden_size: int) -> int:
        """Return the columns of the vectors that a network of some size gives."""
        return 4 * hidden_size if self.pooling == PAIR else hidden_size


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was found and verified; its weights are read on demand.

    Parameters
    ----------
    name : str
        What the user asked for; used in messages.
    fingerprint : str
        Hexadecimal sha256 of everything that the vectors depend on.
    hidden_size : int
        Number of columns of the vectors.
    defaults : EncodingSettings
        What ``"auto"`` means for this checkpoint.
    config, tokenizer, read_weights :
        For a BERT-shaped checkpoint its shape, its tokenizer, and a function
        that returns the weights under the names of transformers' ``BertModel``.
        None for another architecture.
    folder : Path or None
        Where the files lie; None for the bundled checkpoint.
    foreign_reason : str
        Why the packed engine cannot run this checkpoint; "" where it can.
    copy_of : str
        Fingerprint of the checkpoint that a file says it was copied from,
        which nothing proves; "" where it was opened itself.
    """

    name: str
    fingerprint: str
    hidden_size: int
    defaults: EncodingSettings
    config: BertConfig | None = None
    tokenizer: Tokenizer | None = None
    read_weights: Callable[[], Mapping[str, torch.Tensor]] | None = None
    folder: Path | None = None
    foreign_reason: str = ""
    copy_of: str = ""

    @property
    def origin(self) -> str:
        """Fingerprint of the checkpoint, or of the one that it is a copy of."""
        return self.copy_of or self.fingerprint


class LazyWeights(Mapping[str, "torch.Tensor"]):
    """The weights under the names of transformers' ``BertModel``, each read when it is asked for.

    All of them at once in float32 would be the peak of the process's memory.

    Parameters
    ----------
    readers : mapping of str to callable
        Reads the tensor of that name.
    """

    def __init__(self, readers: Mapping[str, Callable[[], torch.Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def combine_digests(parts: Mapping[str, object]) -> str:
    """Return one sha256 over named parts (digests, configurations)."""
    canonical = json.dumps(parts, sort_keys=True, default=asdict)
    return hashlib.sha256(canonical.encode()).hexdigest()


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the hexadecimal sha256 of named arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Return what a file holds, or None where there is none.

    Raises
    ------
    OSError
        It is no JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} is not valid JSON ({error}). Download it again.") from error


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def tokenize(
    tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str] | None, settings: EncodingSettings
) -> TokenBatch:
    """Return the token ids of texts or pairs, the prompt before each (first) text.

    Raises
    ------
    ValueError
        The prompt is as long as a text may be, or no valid Unicode.
    """
    limits = {"max_length": settings.max_length, "long_text": settings.long_text}
    if settings.prompt:

        def lengths(text: str) -> int:
            return tokenizer.encode([text], None if second is None else [""], **limits).full_lengths[0]

        n_tokens = check_prompt(settings.prompt, settings.max_length, lengths)
        if second is not None or settings.long_text == "head_tail":  # else the beginning is kept anyway
            limits["n_kept"] = n_tokens - lengths("")
        first = [settings.prompt + text for text in first]
    batch = tokenizer.encode(first, second, **limits)
    check_some_tokens(batch.full_lengths, first)
    return batch


def check_some_tokens(n_tokens: np.ndarray, texts: Sequence[str]) -> None:
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
