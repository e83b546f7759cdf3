"""Where the package keeps what took long to compute."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for files that can be computed again.

    The environment variable ``SKMINILM_CACHE``, else the user's cache folder
    as the system defines it.
    """
    chosen = os.environ.get("SKMINILM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("skminilm")
