"""Checkpoints of a model hub, kept in the local cache of ``huggingface_hub``."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

from .._warnings import warn
from .layout import find_transformer
from .presets import BUNDLED, PRESETS
from .tokenizer import TOKENIZER_FILES
from .weight_files import SHARD_INDEX, WEIGHT_FILES, find_weights

# Safetensors where a repository has them; other formats and frameworks are never fetched.
_SMALL_FILES = ["*.json", "*.txt", "*.model"]
_MODULE = re.compile(r"\d+_[^/]+/")  # where sentence-transformers saves a module
_SHARDS = "model-*.safetensors"
_COMMIT = re.compile("[0-9a-f]{40}")
_TIMEOUT_S = 3.0  # where the cache could serve instead
_FIRST_TIMEOUT_S = 10.0  # or what HF_HUB_ETAG_TIMEOUT in the environment says, if it is more


def is_hub_id(model: str) -> bool:
    """Tell whether `model` has the form of a hub id (``name`` or ``owner/name``)."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not model:
        return False
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def download(
    repo_id: str, revision: str | None, *, local_files_only: bool, settings_known: bool = False
) -> Path:
    """Return the folder of a hub checkpoint, from the cache or downloaded.

    A commit, given by its full hash, that is complete in the cache is used
    without asking the hub.

    Parameters
    ----------
    settings_known : bool
        A preset knows pooling, normalisation and prompt. Otherwise they are
        read from ``modules.json``, so a cache without it may be incomplete.

    Raises
    ------
    OSError
        The checkpoint is not in the cache and cannot be downloaded.

    Warns
    -----
    UserWarning
        The cache holds no ``modules.json`` and the hub could not be asked
        whether there is one.
    """
    from huggingface_hub import constants, snapshot_download

    def snapshot(patterns: list[str], *, cached_only: bool) -> Path:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, local_files_only=cached_only
        )
        return Path(folder)

    cached = _usable_in_cache(snapshot)
    sure = cached is not None and (settings_known or (cached / "modules.json").is_file())
    offline = local_files_only or constants.HF_HUB_OFFLINE
    if sure and (offline or _COMMIT.fullmatch(revision or "")):
        return cached
    cause: Exception | None = None
    if offline:
        reason = "downloads are off (local_files_only=True or HF_HUB_OFFLINE=1)"
    else:
        try:
            timeout = _TIMEOUT_S
            if cached is None:
                timeout = max(_FIRST_TIMEOUT_S, constants.HF_HUB_ETAG_TIMEOUT)
            return snapshot(_wanted_files(repo_id, revision, timeout), cached_only=False)
        except Exception as error:  # which type depends on the HTTP client of the hub's library
            reason = f"the hub could not be reached or refused ({type(error).__name__}: {error})"
            cause = error
    if cached is not None:
        if not sure:
            warn(
                f"The cache of {repo_id!r} holds no modules.json, and {reason}: mean pooling without "
                "normalisation is assumed. Give pooling= and normalize= if the checkpoint needs others."
            )
        return cached
    hint = ""
    if "/" not in repo_id:
        hint = f" Most names have an owner: 'sentence-transformers/{repo_id}' may be meant."
    raise OSError(
        f"The checkpoint {repo_id!r} (revision {revision or 'main'}) is not in the local cache "
        f"{constants.HF_HUB_CACHE}, and {reason}. It is no local folder either: an estimator that was fitted on one finds "
        f"it elsewhere by set_params(model=PATH).{hint} Download it once on a machine "
        f"with access (hf download {repo_id}) and copy the cache, give the path of a local folder, use a preset "
        f"({', '.join(PRESETS)}), or use model={BUNDLED!r}, which needs no network."
    ) from cause


def _usable_in_cache(snapshot: Callable[..., Path]) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # One format of the weights is enough, which snapshot_download cannot know.
        folder = snapshot(_SMALL_FILES, cached_only=True)
        transformer = find_transformer(folder)
        find_weights(transformer)
    except (OSError, LocalEntryNotFoundError):
        return None
    except RuntimeError as error:
        if "home directory" not in str(error):  # which Path.expanduser says
            raise
        raise OSError(
            "The cache of the hub is in the home folder, and this process has none: set the environment variable "
            "HF_HUB_CACHE to a folder, or HOME."
        ) from error
    needed = (("config.json",), TOKENIZER_FILES)
    present = all(any((transformer / name).is_file() for name in names) for names in needed)
    return folder if present else None


def _wanted_files(repo_id: str, revision: str | None, timeout: float) -> list[str]:
    """Ask the hub which files there are: one request, given up after `timeout` seconds in all."""
    from huggingface_hub import HfApi

    answers: list = []

    def ask() -> None:
        try:
            answers.append(HfApi().repo_info(repo_id, revision=revision, timeout=timeout))
        except Exception as error:
            answers.append(error)

    # In a thread: the library's own time-out counts anew for each address and each attempt.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if not answers:
        raise TimeoutError(f"no answer within {timeout:.0f} s")
    if isinstance(answers[0], Exception):
        raise answers[0]
    names = {file.rfilename for file in answers[0].siblings or ()}
    folders = {"", *(match.group() for name in names if (match := _MODULE.match(name)))}
    weights = [
        next(folder + name for name in WEIGHT_FILES if folder + name in names)
        for folder in sorted(folders)
        if any(folder + name in names for name in WEIGHT_FILES)
    ]
    if not weights:
        raise FileNotFoundError(f"the repository has none of {', '.join(WEIGHT_FILES)}")
    shards = [name.removesuffix(SHARD_INDEX) + _SHARDS for name in weights if name.endswith(SHARD_INDEX)]
    return [*_SMALL_FILES, *weights, *shards]
