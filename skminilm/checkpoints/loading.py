"""Checkpoints found by the `model` parameter, opened once per process and state of their files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from .checkpoint import Checkpoint
from .presets import BUNDLED, PRESETS, Preset, find_preset

_loaded: dict[tuple, Checkpoint] = {}
_MAX_LOADED = 8
_lock = threading.Lock()  # for the two tables: never held while something is read or downloaded
# One a checkpoint that is being loaded, as long as some thread waits for it.
_loading: WeakValueDictionary[tuple, threading.Lock] = WeakValueDictionary()


def _renew_locks() -> None:
    global _lock, _loading
    _lock, _loading = threading.Lock(), WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def load_checkpoint(
    model: str | os.PathLike[str],
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    settings_known: bool = False,
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
    settings_known : bool
        Who asks knows pooling, normalisation and prompt; the checkpoint need not say them.

    Raises
    ------
    TypeError
        `model` is not a str or a path.
    ValueError
        `model` is neither a preset, nor a folder, nor a possible hub id; a
        `revision` is given for a local checkpoint; a tokenizer is wrong; or
        there is no Transformer among the modules.
    OSError
        Files are missing, damaged or cannot be downloaded.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a str or a path, got {type(model).__name__}: {model!r}.")
    name = os.path.expanduser(os.fspath(model))
    is_preset = isinstance(model, str) and name in PRESETS
    is_folder = not is_preset and (not isinstance(model, str) or (name != "" and Path(name).is_dir()))
    if revision is not None and (is_folder or model == BUNDLED):
        raise ValueError(
            f"revision={revision!r} has no meaning for the local checkpoint {name!r}: leave it out."
        )
    if model == BUNDLED:
        return _load_bundled()
    if is_folder:
        return _load_folder(Path(name), name)
    return _load_hub(name, revision, local_files_only, settings_known)


def known_hidden_size(model: str | os.PathLike[str], revision: str | None = None) -> int | None:
    """Return the size of a checkpoint's hidden states, or None where it would have to be downloaded to tell.

    Raises
    ------
    TypeError, ValueError, OSError
        As :func:`load_checkpoint`, of a local folder.
    """
    name = os.path.expanduser(os.fspath(model))
    preset = find_preset(name) if isinstance(model, str) else None
    if preset is not None:
        return preset.hidden_size
    if name and Path(name).is_dir():
        return load_checkpoint(model, revision).hidden_size
    loaded = _find_loaded(name, revision)
    return None if loaded is None else loaded.hidden_size


def _load_bundled() -> Checkpoint:
    from .bundled import find_bundled_file, load_bundled

    return _load_once((BUNDLED, *_state(find_bundled_file())), load_bundled)


def _load_folder(folder: Path, name: str, preset: Preset | None = None) -> Checkpoint:
    from .folder import load_folder, model_files

    if not folder.is_dir():
        raise OSError(f"The folder {folder} does not exist. Known presets: {', '.join(PRESETS)}.")
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise OSError(
            f"The path {str(folder)!r} is not valid UTF-8, or the locale is not ({error.reason}), and the libraries that read "
            "checkpoints take no other: rename the folder, or set the environment variable PYTHONUTF8=1."
        ) from error
    key = str(folder.resolve()), preset, *file_states(model_files(folder))
    return _load_once(key, lambda: load_folder(folder, name, preset))


def _load_hub(name: str, revision: str | None, local_files_only: bool, settings_known: bool) -> Checkpoint:
    from . import hub

    preset = find_preset(name)
    repo_id = preset.repo_id if preset else name
    if not hub.is_hub_id(repo_id):
        raise ValueError(
            f"Unknown model {name!r}: it is neither a preset ({', '.join(PRESETS)}), nor an existing folder, "
            "nor a hub id of the form 'owner/name'."
        )
    revision = revision or (preset.revision if preset else None)
    settings_known = settings_known or preset is not None
    if settings_known:
        found = _find_loaded(repo_id, revision)
        if found is not None:
            return found

    def load() -> Checkpoint:
        folder = hub.download(
            repo_id,
            revision,
            local_files_only=local_files_only,
            settings_known=settings_known,
        )
        return _load_folder(folder, name, preset)

    # A snapshot's files never change. Who does not know the settings is to be warned where they are missing.
    return _load_once(_hub_key(repo_id, revision, settings_known), load)


def _find_loaded(repo_id: str, revision: str | None) -> Checkpoint | None:
    """Return a checkpoint of the hub that this process has loaded."""
    with _lock:
        found = [_loaded.get(_hub_key(repo_id, revision, known)) for known in (True, False)]
    return found[0] or found[1]


def _hub_key(repo_id: str, revision: str | None, settings_known: bool) -> tuple:
    return "hub", repo_id, revision, settings_known


def file_states(paths: Iterable[Path]) -> Iterator[tuple]:
    """Yield what tells the files apart from others that had these names; without those that are not there."""
    for path in paths:
        with suppress(FileNotFoundError):  # somebody has removed it since
            yield _state(path)


def _state(path: Path) -> tuple[str, int, int, int, int]:
    status = path.stat()  # a copy may bring size and time of modification of another file
    return path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _load_once(key: tuple, load: Callable[[], Checkpoint]) -> Checkpoint:
    """Return the checkpoint under `key`; at first use one thread loads it, and only those that want it wait."""
    with _lock:
        if key in _loaded:
            return _loaded[key]
        loading = _loading.setdefault(key, threading.Lock())
    with loading:
        with _lock:
            if key in _loaded:
                return _loaded[key]
        checkpoint = load()
        with _lock:
            while len(_loaded) >= _MAX_LOADED:
                del _loaded[next(iter(_loaded))]
            _loaded[key] = checkpoint
        return checkpoint
