"""Checkpoints in a local folder, as transformers or sentence-transformers lay them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .checkpoint import BertConfig, Checkpoint, EncodingSettings, n_unused_positions, read_json
from .digests import combine_digests, file_sha256
from .layout import ESTIMATOR_FILE, Layout, has_adapter, kind_of, read_modules, transformer_folder
from .presets import Preset
from .sentencepiece_tokenizer import XLMR_VOCABULARY, SentencePieceTokenizer
from .tokenizer import read_tokenizer, tokenizer_files, verify_golden_ids
from .weight_files import check_weights, find_weights, read_weights, safetensors_shapes

_MAX_PADDING_ROWS = 64  # rows of embeddings beyond the vocabulary, of which the family has 35
_MAX_DEPTH = 2  # of what modules.json does not name
_VOCABULARIES = ("vocab.txt", "merges.txt", "dict.txt", "bpe.codes")
_WEIGHTS_IN_BIN = ("pytorch_model", "adapter_model")
_LOGS = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that can belong to a checkpoint; logs, caches and others cannot."""
    found = set()
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = [] if depth == _MAX_DEPTH else [name for name in folders if not name.startswith(".")]
        found |= _model_files_in(place, names)
    for path in filter(None, (module["path"] for module in read_modules(folder))):
        for place, _, names in os.walk(folder / path):
            found |= _model_files_in(place, names)
    return sorted(found)


def _model_files_in(place: str, names: list[str]) -> set[Path]:
    paths = (Path(place, name) for name in names if _can_belong_to_model(name))
    return {path for path in paths if path.is_file()}


def _can_belong_to_model(name: str) -> bool:
    suffix = Path(name).suffix
    return (
        suffix in (".safetensors", ".model", ".spm")
        or (suffix == ".json" and name not in _LOGS)
        or (suffix == ".bin" and name.startswith(_WEIGHTS_IN_BIN))
        or name in _VOCABULARIES
    )


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
    modules = read_modules(folder)
    transformer = transformer_folder(folder, modules)
    raw_config = read_json(transformer / "config.json")
    if raw_config is None:
        raise _without_config(folder, transformer, modules)
    try:
        layout = Layout(folder, modules, transformer, raw_config)
        defaults = layout.settings() if preset is None else preset.settings
        reason = layout.why_foreign()
        weight_files = find_weights(transformer)
        if reason:
            return _foreign(folder, name, layout.vector_size(), defaults, reason, weight_files)
        config, n_unused = BertConfig.from_dict(raw_config), n_unused_positions(raw_config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OSError(
            f"A configuration file in {folder} lacks or garbles a field ({type(error).__name__}: {error}). "
            "Download the folder again."
        ) from error
    tokenizer = read_tokenizer(transformer, config.vocab_size)
    if XLMR_VOCABULARY <= config.vocab_size <= XLMR_VOCABULARY + _MAX_PADDING_ROWS:
        verify_golden_ids(tokenizer, name)
    elif isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.n_ids > config.vocab_size:
        raise OSError(
            f"The tokenizer in {transformer} has {tokenizer.n_ids} ids, and the network {config.vocab_size} word "
            "embeddings: they do not belong together. Download both from one repository."
        )
    digests: dict[str, str | list[str]] = {
        path.name: file_sha256(path) for path in tokenizer_files(transformer, tokenizer)
    }
    weight_digests = [file_sha256(path) for path in weight_files]
    digests["weights"] = weight_digests[0] if len(weight_digests) == 1 else weight_digests
    check_weights(weight_files, config, n_unused)
    return Checkpoint(
        name=name,
        fingerprint=combine_digests({"format": 1, "files": digests, "config": config}),
        hidden_size=config.hidden_size,
        defaults=defaults,
        config=config,
        tokenizer=tokenizer,
        read_weights=lambda: read_weights(weight_files, n_unused),
        folder=folder,
    )


def _without_config(folder: Path, transformer: Path, modules: list[dict]) -> Exception:
    if has_adapter(transformer):
        return OSError(
            f"{transformer} holds an adapter (PEFT) without the network that it belongs to. Load both with peft, merge "
            "them (merge_and_unload), and save the result to a folder."
        )
    if (folder / ESTIMATOR_FILE).is_file():
        return OSError(
            f"{folder} holds a saved estimator, not a checkpoint: open it by its class, MiniLMClassifier.load(...) or another. "
            "export writes the network of one as a checkpoint."
        )
    if not modules:
        return OSError(
            f"{folder} holds no checkpoint: neither config.json nor modules.json is in it. Give a folder "
            "written by save_pretrained or by SentenceTransformer.save."
        )
    if any(kind_of(module) == "Transformer" for module in modules):
        return OSError(
            f"No config.json in {transformer}, where modules.json says that the Transformer is. Copy it from "
            "the repository that the weights came from."
        )
    return ValueError(
        f"{folder} holds no Transformer: its first module is {modules[0]['type']}. Give a checkpoint with a "
        "Transformer, or compute vectors with sentence_transformers.SentenceTransformer(folder) and pass "
        "them to scikit-learn."
    )


def _foreign(
    folder: Path,
    name: str,
    vector_size: int | None,
    defaults: EncodingSettings,
    reason: str,
    weight_files: Sequence[Path],
) -> Checkpoint:
    """Describe a checkpoint that sentence-transformers runs."""
    safetensors_shapes(weight_files)  # refuses a damaged file
    if not vector_size:
        raise OSError(f"{folder / 'config.json'} does not say the hidden size of the network.")
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in model_files(folder)}
    return Checkpoint(
        name=name,
        fingerprint=combine_digests({"format": 1, "files": digests}),
        hidden_size=int(vector_size),
        defaults=defaults,
        folder=folder,
        foreign_reason=reason,
    )
