"""Checkpoints of a model hub, kept in the local cache of ``huggingface_hub``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .presets import BUNDLED

# Safetensors where a repository has them; other formats and frameworks are never fetched.
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*/config.json"]
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TIMEOUT_S = 3


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


def download(repo_id: str, revision: str | None, *, local_files_only: bool) -> Path:
    """Return the folder of a hub checkpoint, from the cache or downloaded.

    A pinned commit that is in the cache is used without asking the hub.

    Raises
    ------
    OSError
        The checkpoint is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import constants, snapshot_download

    def snapshot(patterns: list[str], *, cached_only: bool) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=cached_only,
                etag_timeout=_TIMEOUT_S,
            )
        )

    cached = _complete_in_cache(snapshot)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    if cached is not None and (offline or revision is not None):
        return cached
    cause: Exception | None = None
    if offline:
        reason = "downloads are off (local_files_only=True or HF_HUB_OFFLINE=1)"
    else:
        try:
            return snapshot(_wanted_files(repo_id, revision), cached_only=False)
        except Exception as error:  # which type depends on the HTTP client of the hub's library
            if cached is not None:
                return cached
            reason = f"the hub could not be reached or refused ({type(error).__name__}: {error})"
            cause = error
    raise OSError(
        f"The checkpoint {repo_id!r} (revision {revision or 'main'}) is not in the local cache "
        f"{constants.HF_HUB_CACHE}, and {reason}. Download it once on a machine with access (hf download "
        f"{repo_id}) and copy the cache, give the path of a local folder, or use model={BUNDLED!r}, "
        "which needs no network."
    ) from cause


def _complete_in_cache(snapshot: Callable[..., Path]) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot([*_SMALL_FILES, *_WEIGHTS], cached_only=True)
    except (OSError, LocalEntryNotFoundError):
        return None
    has_weights = any((folder / name).is_file() for name in _WEIGHTS)
    return folder if has_weights and (folder / "config.json").is_file() else None


def _wanted_files(repo_id: str, revision: str | None) -> list[str]:
    """Ask the hub which files there are: one request, so that a missing network is noticed at once."""
    from huggingface_hub import HfApi

    info = HfApi().repo_info(repo_id, revision=revision, timeout=_TIMEOUT_S)
    names = {file.rfilename for file in info.siblings or ()}
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        raise FileNotFoundError(f"the repository has none of {', '.join(_WEIGHTS)}")
    return [*_SMALL_FILES, weights]
