"""From the `model` parameter to a verified checkpoint.

``presets`` names the known checkpoints, ``bundled``, ``folder`` and ``hub`` are
the places they come from, ``tokenizer`` turns texts into ids.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ._checkpoint import LONG_TEXTS, PAIR, POOLINGS, BertConfig, Checkpoint, EncodingSettings, tokenize
from .presets import BUNDLED, PRESETS, find_preset

__all__ = [
    "BUNDLED",
    "LONG_TEXTS",
    "PAIR",
    "POOLINGS",
    "PRESETS",
    "BertConfig",
    "Checkpoint",
    "EncodingSettings",
    "load_checkpoint",
    "tokenize",
]

_loaded: dict[tuple, Checkpoint] = {}
_MAX_LOADED = 8
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def load_checkpoint(
    model: str | os.PathLike[str], revision: str | None = None, *, local_files_only: bool = False
) -> Checkpoint:
    """Find, verify and open a checkpoint; once per process and state of its files.

    Parameters
    ----------
    model : str or path
        ``"bundled"``, a preset, a local folder, or a hub id.
    revision : str or None
        Commit, tag or branch of a hub repository. None takes the preset's,
        or the newest for other repositories.
    local_files_only : bool
        Never ask the hub.

    Raises
    ------
    TypeError
        `model` is not a str or a path.
    ValueError
        `model` is neither a preset, nor a folder, nor a possible hub id; a
        `revision` is given for a local checkpoint; or a tokenizer is wrong.
    OSError
        Files are missing, damaged or cannot be downloaded.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a str or a path, got {type(model).__name__}: {model!r}.")
    name = os.fspath(model)
    is_preset = isinstance(model, str) and name in PRESETS
    is_folder = not is_preset and (not isinstance(model, str) or (name != "" and Path(name).is_dir()))
    if revision is not None and (is_folder or model == BUNDLED):
        raise ValueError(
            f"revision={revision!r} has no meaning for the local checkpoint {name!r}: leave it out."
        )
    with _lock:
        if model == BUNDLED:
            return _load_bundled_once()
        if is_folder:
            return _load_folder_once(Path(name), name)
        return _load_hub(name, revision, local_files_only)


def _load_bundled_once() -> Checkpoint:
    from .bundled import find_bundled_file, load_bundled

    key = (BUNDLED, *_state(find_bundled_file()))
    if key not in _loaded:
        _remember(key, load_bundled())
    return _loaded[key]


def _load_folder_once(folder: Path, name: str, preset=None) -> Checkpoint:
    from .folder import load_folder

    if not folder.is_dir():
        raise OSError(f"The folder {folder} does not exist. Known presets: {', '.join(PRESETS)}.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    key = (str(folder.resolve()), preset, *(_state(path) for path in files))
    if key not in _loaded:
        _remember(key, load_folder(folder, name, preset))
    return _loaded[key]


def _load_hub(name: str, revision: str | None, local_files_only: bool) -> Checkpoint:
    from . import hub

    preset = find_preset(name)
    repo_id = preset.repo_id if preset else name
    if not hub.is_hub_id(repo_id):
        raise ValueError(
            f"Unknown model {name!r}: it is neither a preset ({', '.join(PRESETS)}), nor an existing folder, "
            "nor a hub id of the form 'owner/name'."
        )
    revision = revision or (preset.revision if preset else None)
    key = ("hub", repo_id, revision)
    if key not in _loaded:  # a snapshot's files never change
        folder = hub.download(
            repo_id, revision, local_files_only=local_files_only, settings_known=preset is not None
        )
        _remember(key, _load_folder_once(folder, name, preset))
    return _loaded[key]


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _remember(key: tuple, checkpoint: Checkpoint) -> None:
    while len(_loaded) >= _MAX_LOADED:
        del _loaded[next(iter(_loaded))]
    _loaded[key] = checkpoint
