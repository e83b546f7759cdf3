"""Checkpoints of a model hub, kept in the local cache of ``huggingface_hub``."""

from __future__ import annotations

from pathlib import Path

from .presets import BUNDLED

# Safetensors where a repository has them; other formats and frameworks are never fetched.
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*/config.json"]
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TIMEOUT_S = 3


def is_hub_id(model: str) -> bool:
    """Tell whether `model` has the form of a hub id (``name`` or ``owner/name``)."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

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
    if not offline:
        try:
            return _fetch(repo_id, revision, snapshot)
        except (OSError, ValueError, RuntimeError, *_hub_errors()) as error:
            if cached is not None:
                return cached
            reason = f"the hub could not be reached or refused ({type(error).__name__}: {error})"
            cause: Exception | None = error
    else:
        reason, cause = "downloads are off (local_files_only=True or HF_HUB_OFFLINE=1)", None
    raise OSError(
        f"The checkpoint {repo_id!r} (revision {revision or 'main'}) is not in the local cache "
        f"{constants.HF_HUB_CACHE}, and {reason}. Download it once on a machine with access (hf download "
        f"{repo_id}) and copy the cache, give the path of a local folder, or use model={BUNDLED!r}, "
        "which needs no network."
    ) from cause


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return HfHubHTTPError, LocalEntryNotFoundError


def _complete_in_cache(snapshot) -> Path | None:
    try:
        folder = snapshot([*_SMALL_FILES, *_WEIGHTS], cached_only=True)
    except (OSError, ValueError, *_hub_errors()):
        return None
    has_weights = any((folder / name).is_file() for name in (*_WEIGHTS, *_SHARDED))
    return folder if has_weights and (folder / "config.json").is_file() else None


def _fetch(repo_id: str, revision: str | None, snapshot) -> Path:
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(repo_id, revision=revision)
    if any(name.endswith(".safetensors") and "/" not in name for name in files):
        weights = ["model.safetensors", "model-*.safetensors"]
    else:
        weights = ["pytorch_model.bin", "pytorch_model-*.bin"]
    return snapshot([*_SMALL_FILES, *weights], cached_only=False)
