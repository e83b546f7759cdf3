"""The weight files of a checkpoint folder: found, compared with the configuration, read when asked for."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import (
    POSITION_EMBEDDINGS,
    WORD_EMBEDDINGS,
    BertConfig,
    LazyWeights,
    read_json,
)

if TYPE_CHECKING:
    import torch

SHARD_INDEX = "model.safetensors.index.json"
_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (_SAFETENSORS, SHARD_INDEX, _BIN)
"""What a folder may hold, in the order of preference."""

_OLD_NAMES = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
}  # of Google's first BERT
_PREFIXES = ("bert.", "roberta.")  # of a network below a head


def find_weights(folder: Path) -> list[Path]:
    """Return the weights of a folder: one file, or the shards that an index lists.

    Raises
    ------
    OSError
        There are none, or some shards are missing.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return _find_shards(folder / name) if name == SHARD_INDEX else [folder / name]
    raise OSError(
        f"No weights in {folder}: expected {_SAFETENSORS} (or {_BIN}). Copy the file from the repository "
        "that the configuration came from."
    )


def _find_shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, f"{type(error).__name__}: {error}") from error
    if missing or not names:
        raise OSError(
            f"{index} lists {', '.join(missing) or 'no files'}, which are not in the folder. Copy all files of "
            "the weights from the repository that they came from."
        )
    return [index.parent / name for name in names]


def _damaged(path: Path, error: Exception | str) -> OSError:
    return OSError(f"{path} is damaged or incomplete ({error}). Download it again.")


def check_weights(paths: Sequence[Path], config: BertConfig, n_unused_positions: int = 0) -> None:
    """Read the headers of the weight files, so that a damaged file is refused early."""
    folder = paths[0].parent
    if config.hidden_size % config.num_attention_heads:
        raise _damaged(
            folder / "config.json",
            f"{config.num_attention_heads} heads do not divide the hidden size {config.hidden_size}",
        )
    expected = {
        "word_embeddings.weight": (config.vocab_size, config.hidden_size),
        "position_embeddings.weight": (
            config.max_position_embeddings + n_unused_positions,
            config.hidden_size,
        ),
    }
    shapes = safetensors_shapes(paths)
    for name, shape in expected.items():
        found = next((value for full_name, value in shapes.items() if full_name.endswith(name)), None)
        if shapes and found != shape:
            path = paths[0] if len(paths) == 1 else folder / SHARD_INDEX
            raise _damaged(path, f"its {name} has the shape {found}, config.json says {shape}")


def safetensors_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of safetensors files; nothing for another file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            file = _open_safetensors(path, "np")
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _open_safetensors(path: Path, framework: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def read_weights(paths: Sequence[Path], n_unused_positions: int = 0) -> Mapping[str, torch.Tensor]:
    """Return the weights under the names of transformers' ``BertModel``, each read when it is asked for.

    A ``.bin`` of the oldest format is no archive, so it is read whole. The
    first `n_unused_positions` of the position embeddings are left out.
    """
    readers = {_new_name(name): reader for path in paths for name, reader in _tensor_readers(path).items()}
    prefix = next(
        (p for p in _PREFIXES if WORD_EMBEDDINGS not in readers and p + WORD_EMBEDDINGS in readers), ""
    )
    readers = {name.removeprefix(prefix): reader for name, reader in readers.items()}
    if n_unused_positions and POSITION_EMBEDDINGS in readers:
        read_all = readers[POSITION_EMBEDDINGS]
        readers[POSITION_EMBEDDINGS] = lambda: read_all()[n_unused_positions:].clone()
    return LazyWeights(readers)


def _new_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _tensor_readers(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    # Copies: a mapped tensor would change when somebody writes to the file.
    if path.suffix == ".safetensors":
        file = _open_safetensors(path, "pt")
        return {name: functools.partial(_read_tensor, file, name) for name in file.keys()}  # noqa: SIM118
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {name: tensor.clone for name, tensor in tensors.items()}
    except Exception as error:  # unpickling a damaged file can raise anything
        raise _damaged(path, error) from error


def _read_tensor(file: Any, name: str) -> torch.Tensor:
    return file.get_tensor(name).clone()
