"""Checkpoints in a local folder, as transformers or sentence-transformers lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._checkpoint import (
    WEIGHT_FILES,
    BertConfig,
    Checkpoint,
    EncodingSettings,
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
_SAFETENSORS, _BIN = WEIGHT_FILES


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
        The tokenizer is not the one that the weights were trained with.
    """
    modules = _read_modules(folder)
    transformer = folder / next((m["path"] for m in modules if _kind(m) == "Transformer"), "")
    raw_config = _read_json(transformer / "config.json")
    if raw_config is None:
        raise OSError(
            f"{folder} holds no checkpoint: neither config.json nor modules.json is in it. Give a folder "
            "written by save_pretrained or by SentenceTransformer.save."
        )
    try:
        defaults = _read_defaults(folder, transformer, modules, raw_config, preset)
        reason = _why_foreign(raw_config, modules, folder)
        weights_file = _find_weights(transformer)
        if reason:
            return _foreign(folder, name, raw_config, defaults, reason, modules, weights_file)
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
    digests["weights"] = file_sha256(weights_file)
    _check_weights(weights_file, config)
    return Checkpoint(
        name=name,
        fingerprint=combine_digests({"format": 1, "files": digests, "config": config}),
        hidden_size=config.hidden_size,
        defaults=defaults,
        config=config,
        tokenizer=tokenizer,
        read_weights=lambda: _read_weights(weights_file),
        folder=folder,
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


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise OSError(
        f"No weights in {folder}: expected {_SAFETENSORS} (or {_BIN}). Copy the file from the repository "
        "that the configuration came from."
    )


def _damaged(path: Path, error: Exception | str) -> OSError:
    return OSError(f"{path} is damaged or incomplete ({error}). Download it again.")


def _check_weights(path: Path, config: BertConfig) -> None:
    """Look at the weight file's table of contents, so that a damaged file is refused early."""
    if config.hidden_size % config.num_attention_heads:
        raise _damaged(
            path.parent / "config.json",
            f"{config.num_attention_heads} heads do not divide the hidden size {config.hidden_size}",
        )
    expected = {
        "word_embeddings.weight": (config.vocab_size, config.hidden_size),
        "position_embeddings.weight": (config.max_position_embeddings, config.hidden_size),
    }
    shapes = _safetensors_shapes(path)
    for name, shape in expected.items():
        found = next((value for full_name, value in shapes.items() if full_name.endswith(name)), None)
        if shapes and found != shape:
            raise _damaged(path, f"its {name} has the shape {found}, config.json says {shape}")


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file; nothing for another file."""
    if path.name != _SAFETENSORS:
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers' ``BertModel``."""
    if path.name == _SAFETENSORS:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                # Copies: a mapped tensor would change when somebody writes to the file.
                weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _damaged(path, error) from error
    else:
        import torch

        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a damaged file can raise anything
            raise _damaged(path, error) from error
    if not any(name.startswith("embeddings.") for name in weights):
        weights = {name.removeprefix("bert."): value for name, value in weights.items()}
    return weights


def _foreign(
    folder: Path,
    name: str,
    config: dict,
    defaults: EncodingSettings,
    reason: str,
    modules: list[dict],
    weights_file: Path,
) -> Checkpoint:
    """Describe a checkpoint that sentence-transformers runs."""
    _safetensors_shapes(weights_file)  # refuses a damaged file
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
