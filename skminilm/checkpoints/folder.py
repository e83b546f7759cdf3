"""Checkpoints in a local folder, as transformers or sentence-transformers lay them out."""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._checkpoint import (
    SHARD_INDEX,
    WEIGHT_FILES,
    BertConfig,
    Checkpoint,
    EncodingSettings,
    LazyWeights,
    combine_digests,
    file_sha256,
)
from .presets import Preset
from .sentencepiece_tokenizer import XLMR_VOCABULARY
from .tokenizer import TOKENIZER_FILES, read_tokenizer, verify_golden_ids

if TYPE_CHECKING:
    import torch

_POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_MAX_PADDING_ROWS = 64  # beyond the pieces: the family has 35
_MODULES_KNOWN = ("Transformer", "Pooling", "Normalize")
_SAFETENSORS, _, _BIN = WEIGHT_FILES


def load_folder(folder: Path, name: str, preset: Preset | None = None) -> Checkpoint:
    """Open the checkpoint in a folder.

    Parameters
    ----------
    folder : Path
        Has a ``config.json`` (transformers layout) or a ``modules.json``
        (sentence-transformers layout).
    name : str
        What the user asked for; used in messages.
    preset : Preset or None
        Settings known for this checkpoint. Where it is None they are read
        from the folder, and default to mean pooling without normalisation.

    Raises
    ------
    OSError
        A file is missing or damaged.
    ValueError
        The tokenizer is not the one that the weights were trained with, or
        none of the modules is a Transformer.
    """
    modules = _read_modules(folder)
    transformer = folder / next((m["path"] for m in modules if _kind(m) == "Transformer"), "")
    raw_config = _read_json(transformer / "config.json")
    if raw_config is None:
        raise _without_config(folder, transformer, modules)
    try:
        defaults = _read_defaults(folder, transformer, modules, raw_config, preset)
        reason = _why_foreign(raw_config, modules, folder)
        weight_files = find_weights(transformer)
        if reason:
            return _foreign(folder, name, raw_config, defaults, reason, modules, weight_files)
        config = BertConfig.from_dict(raw_config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OSError(
            f"A configuration file in {folder} lacks or garbles a field ({type(error).__name__}: {error}). "
            "Download the folder again."
        ) from error
    tokenizer = read_tokenizer(transformer)
    if XLMR_VOCABULARY <= config.vocab_size <= XLMR_VOCABULARY + _MAX_PADDING_ROWS:
        verify_golden_ids(tokenizer, name)
    digests = {
        file: file_sha256(transformer / file) for file in TOKENIZER_FILES if (transformer / file).is_file()
    }
    weight_digests = [file_sha256(path) for path in weight_files]
    digests["weights"] = weight_digests[0] if len(weight_digests) == 1 else weight_digests
    _check_weights(weight_files, config)
    return Checkpoint(
        name=name,
        fingerprint=combine_digests({"format": 1, "files": digests, "config": config}),
        hidden_size=config.hidden_size,
        defaults=defaults,
        config=config,
        tokenizer=tokenizer,
        read_weights=lambda: _read_weights(weight_files),
        folder=folder,
    )


def _without_config(folder: Path, transformer: Path, modules: list[dict]) -> Exception:
    if not modules:
        return OSError(
            f"{folder} holds no checkpoint: neither config.json nor modules.json is in it. Give a folder "
            "written by save_pretrained or by SentenceTransformer.save."
        )
    if any(_kind(module) == "Transformer" for module in modules):
        return OSError(
            f"No config.json in {transformer}, where modules.json says that the Transformer is. Copy it from "
            "the repository that the weights came from."
        )
    return ValueError(
        f"{folder} holds no Transformer: its first module is {modules[0]['type']}. Give a checkpoint with a "
        "Transformer, or compute vectors with sentence_transformers.SentenceTransformer(folder) and pass "
        "them to scikit-learn."
    )


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not valid JSON ({error}). Download it again.") from error


def _kind(module: dict) -> str:
    return str(module["type"]).rsplit(".", 1)[-1]


def _read_modules(folder: Path) -> list[dict]:
    modules = _read_json(folder / "modules.json") or []
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules
    ):
        raise OSError(f"{folder / 'modules.json'} does not list modules with type and path.")
    return modules


def _pooling_of(config: dict) -> str | None:
    mode = config.get("pooling_mode")  # newer releases of sentence-transformers
    if mode is not None:
        mode = [mode] if isinstance(mode, str) else list(mode)
        return mode[0] if len(mode) == 1 and mode[0] in _POOLING_KEYS.values() else None
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    return _POOLING_KEYS.get(on[0]) if len(on) == 1 else None


def _why_foreign(config: dict, modules: list[dict], folder: Path) -> str:
    """Say why the packed engine cannot run a checkpoint; "" where it can."""
    if config.get("model_type") != "bert":
        return f"its architecture is {config.get('model_type')!r}, not 'bert'"
    if config.get("hidden_act", "gelu") != "gelu":
        return f"its activation is {config['hidden_act']!r}, not 'gelu'"
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return "its attention is not BERT's"
    for module in modules:
        if _kind(module) not in _MODULES_KNOWN:
            return f"it has a module of the type {module['type']}"
        if _kind(module) == "Pooling":
            pooling = _read_json(folder / module["path"] / "config.json") or {}
            if _pooling_of(pooling) is None:
                return "its pooling is none of mean, cls and max"
            if not pooling.get("include_prompt", True):
                return "its pooling leaves the prompt out"
    return ""


def _read_defaults(
    folder: Path, transformer: Path, modules: list[dict], config: dict, preset: Preset | None
) -> EncodingSettings:
    """Read pooling, normalisation, prompt and length, as sentence-transformers would."""
    if preset is not None:
        return EncodingSettings(preset.pooling, preset.normalize, preset.prompt, preset.max_length)
    pooling = "mean"
    for module in modules:
        if _kind(module) == "Pooling":
            pooling = _pooling_of(_read_json(folder / module["path"] / "config.json") or {}) or "other"
    prompts = _read_json(folder / "config_sentence_transformers.json") or {}
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
    limits = [int(config.get("max_position_embeddings") or 512)]
    for file in ("sentence_bert_config.json", "tokenizer_config.json"):
        settings = _read_json(transformer / file) or {}
        limit = settings.get("max_seq_length") or settings.get("model_max_length")
        if limit:
            limits.append(int(limit))
    normalize = any(_kind(module) == "Normalize" for module in modules)
    return EncodingSettings(pooling, normalize, prompt or "", min(limits))


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
        names = sorted(set(_read_json(index)["weight_map"].values()))
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


def _check_weights(paths: Sequence[Path], config: BertConfig) -> None:
    """Look at the weight files' tables of contents, so that a damaged file is refused early."""
    folder = paths[0].parent
    if config.hidden_size % config.num_attention_heads:
        raise _damaged(
            folder / "config.json",
            f"{config.num_attention_heads} heads do not divide the hidden size {config.hidden_size}",
        )
    expected = {
        "word_embeddings.weight": (config.vocab_size, config.hidden_size),
        "position_embeddings.weight": (config.max_position_embeddings, config.hidden_size),
    }
    shapes = _safetensors_shapes(paths)
    for name, shape in expected.items():
        found = next((value for full_name, value in shapes.items() if full_name.endswith(name)), None)
        if shapes and found != shape:
            path = paths[0] if len(paths) == 1 else folder / SHARD_INDEX
            raise _damaged(path, f"its {name} has the shape {found}, config.json says {shape}")


def _safetensors_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of safetensors files; nothing for another file."""
    shapes = {}
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


def _read_weights(paths: Sequence[Path]) -> Mapping[str, torch.Tensor]:
    """Return the weights under the names of transformers' ``BertModel``, each read when it is asked for.

    A ``.bin`` of the oldest format is no archive, so it is read whole.
    """
    readers = {name: reader for path in paths for name, reader in _tensor_readers(path).items()}
    if not any(name.startswith("embeddings.") for name in readers):
        readers = {name.removeprefix("bert."): reader for name, reader in readers.items()}
    return LazyWeights(readers)


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


def _foreign(
    folder: Path,
    name: str,
    config: dict,
    defaults: EncodingSettings,
    reason: str,
    modules: list[dict],
    weight_files: Sequence[Path],
) -> Checkpoint:
    """Describe a checkpoint that sentence-transformers runs."""
    _safetensors_shapes(weight_files)  # refuses a damaged file
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".model", ".txt")
    )
    digests = {str(path.relative_to(folder)): file_sha256(path) for path in files}
    hidden = config.get("hidden_size") or config.get("dim") or config.get("d_model")
    for module in modules:  # a Dense module changes the width
        width = (_read_json(folder / module["path"] / "config.json") or {}).get("out_features")
        hidden = width or hidden
    if not hidden:
        raise OSError(f"{folder / 'config.json'} does not say the hidden size of the network.")
    return Checkpoint(
        name=name,
        fingerprint=combine_digests({"format": 1, "files": digests}),
        hidden_size=int(hidden),
        defaults=defaults,
        folder=folder,
        foreign_reason=reason,
    )
