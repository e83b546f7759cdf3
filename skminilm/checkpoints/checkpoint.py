"""What every checkpoint source hands to the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .token_batch import Tokenizer

POOLINGS = ("mean", "cls", "max")
PAIR = "pair"  # compares the two texts of a pair; for fine-tuning
PAIR_AND_TEXTS = "pair+texts"  # that, and beside it both texts by themselves
LONG_TEXTS = ("truncate", "head_tail", "chunk_mean")
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
POSITION_EMBEDDINGS = "embeddings.position_embeddings.weight"
XLMR_TYPE = "xlm-roberta"  # whose networks differ from BERT's in nothing but where positions begin


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder, as in the ``config.json`` of transformers.

    `max_position_embeddings` counts the positions that tokens can have, see
    :func:`n_unused_positions`.
    """

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
            max_position_embeddings=int(config.get("max_position_embeddings", 512))
            - n_unused_positions(config),
            type_vocab_size=int(config.get("type_vocab_size", 2)),
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        )


def n_unused_positions(config: Mapping[str, Any]) -> int:
    """Return how many position embeddings of a ``config.json`` no token has.

    XLM-R counts positions from behind the id of padding.
    """
    return int(config.get("pad_token_id", 1)) + 1 if config.get("model_type") == XLMR_TYPE else 0


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
        if self.pooling == PAIR_AND_TEXTS:
            return 6 * hidden_size + 1
        return 4 * hidden_size if self.pooling == PAIR else hidden_size

    @property
    def of_network(self) -> EncodingSettings:
        """Those of the part of a vector that the network gives which may be trained: all but of pairs with their texts."""
        return replace(self, pooling=PAIR) if self.pooling == PAIR_AND_TEXTS else self


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
        Where the files lie; None for the bundled checkpoint and one out of a saved estimator.
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
