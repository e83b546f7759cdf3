"""What was computed before, found by the text and by everything else that it depends on."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from ._folders import own_path

if TYPE_CHECKING:
    from ._disk_cache import DiskVectorCache

DEFAULT_CACHE_BYTES = 256 * 2**20
DEFAULT_DISK_CACHE_BYTES = 4 * 2**30
DEFAULT_STATE_CACHE_BYTES = 512 * 2**20
_ENTRY_OVERHEAD = 300  # bytes of key, array header and table slot beside the vector


class VectorCache:
    """A bounded store of arrays in memory; the least recently used are dropped.

    Parameters
    ----------
    max_bytes : int
        Bound on the memory of all entries.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[np.ndarray | None]:
        """Return the vector of each key, None where there is none."""
        with self._lock:
            found = []
            for key in keys:
                vector = self._vectors.get(key)
                if vector is not None:
                    self._vectors.move_to_end(key)
                found.append(vector)
            return found

    def put(self, keys: Sequence[bytes], vectors: Iterable[np.ndarray]) -> None:
        """Store a copy of one vector a key."""
        with self._lock:
            for key, vector in zip(keys, vectors, strict=True):
                if key not in self._vectors:
                    self._vectors[key] = vector.copy()
                    self._bytes += self.size_of(vector.nbytes)
            self._shrink()

    def size_of(self, n_bytes: int) -> int:
        """Return how many bytes of the bound an array takes that has so many."""
        return n_bytes + _ENTRY_OVERHEAD

    def resize(self, max_bytes: int) -> None:
        """Change the bound, dropping what does not fit."""
        with self._lock:
            self.max_bytes = max_bytes
            self._shrink()

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:  # no call between the two, where Ctrl-C could come in
            self._vectors, self._bytes = OrderedDict(), 0

    def __len__(self) -> int:
        return len(self._vectors)

    def _shrink(self) -> None:
        while self._vectors and self._bytes > self.max_bytes:
            key = next(iter(self._vectors))
            size = self.size_of(self._vectors[key].nbytes)
            del self._vectors[key]
            self._bytes -= size

    def renew_lock(self) -> None:
        """Forget a lock that another thread held when the process forked."""
        self._lock = threading.Lock()


memory_cache = VectorCache()
# Token states below the layers that are fine-tuned; see engine/layer_states.py.
state_cache = VectorCache(DEFAULT_STATE_CACHE_BYTES)
_disk_cache_bytes = DEFAULT_DISK_CACHE_BYTES
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=memory_cache.renew_lock)
    os.register_at_fork(after_in_child=state_cache.renew_lock)


def vector_keys(namespace: str, texts: Sequence[str], second: Sequence[str] | None) -> list[bytes]:
    """Return one key a text (or pair).

    Parameters
    ----------
    namespace : str
        Names everything but the text that a vector depends on.
    """
    base = hashlib.blake2b(namespace.encode(), digest_size=16)

    def key(*parts: str) -> bytes:
        digest = base.copy()
        for part in parts:
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little"))  # ("ab", "c") is not ("a", "bc")
            digest.update(encoded)
        return digest.digest()

    if second is None:
        return [key(text) for text in texts]
    return [key(a, b) for a, b in zip(texts, second, strict=True)]


def clear_cache() -> None:
    """Drop all vectors and token states kept in this process; folders (``cache=PATH``) are left alone."""
    memory_cache.clear()
    state_cache.clear()


def release_models() -> None:
    """Free the memory of all models that are loaded in this process; the next call loads what it needs.

    Up to six models stay loaded, also those of estimators that are gone. A
    model that another thread computes with is freed when that ends. Vectors
    and token states are kept: see :func:`clear_cache`.
    """
    from .engine import release_models  # at use: the engine imports torch

    release_models()


def open_cache(cache: str | os.PathLike[str] | None) -> VectorCache | DiskVectorCache | None:
    """Return what an estimator's parameter `cache` stands for.

    Raises
    ------
    ValueError
        A word that is neither ``"memory"`` nor a folder.
    OSError
        The folder cannot be made.
    """
    if cache is None:
        return None
    if cache == "memory":
        return memory_cache
    path = own_path(cache)
    is_name = isinstance(cache, str) and os.sep not in cache and "/" not in cache
    if cache == "" or (is_name and not path.is_dir()):
        raise ValueError(
            f"cache={cache!r} is not known: use 'memory', None, or a folder for vectors on disk (a folder of "
            f"that name in the working directory is './{cache}')."
        )
    from ._disk_cache import DiskVectorCache  # a Python may be built without SQLite

    return DiskVectorCache(path, _disk_cache_bytes)


def set_config(
    *,
    cache_bytes: int | None = None,
    disk_cache_bytes: int | None = None,
    state_cache_bytes: int | None = None,
) -> None:
    """Set process-wide options. None leaves an option as it is.

    Parameters
    ----------
    cache_bytes : int, default=None
        Memory that ``cache="memory"`` may take, in bytes (268,435,456 at
        the start). 0 keeps nothing.
    disk_cache_bytes : int, default=None
        Size that the file of each ``cache=PATH`` may reach, in bytes
        (4,294,967,296 at the start).
    state_cache_bytes : int, default=None
        Memory that token states may take, in bytes (536,870,912 at the
        start): with ``trainable=k``, the output of the frozen layers for each
        text (768 bytes per token in bfloat16). What does not fit is computed
        anew in each epoch.

    Raises
    ------
    ValueError
        A value is negative or not an int.
    """
    global _disk_cache_bytes
    given = {
        "cache_bytes": cache_bytes,
        "disk_cache_bytes": disk_cache_bytes,
        "state_cache_bytes": state_cache_bytes,
    }
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be an int >= 0 (bytes), got {value!r}.")
    if cache_bytes is not None:
        memory_cache.resize(cache_bytes)
    if state_cache_bytes is not None:
        state_cache.resize(state_cache_bytes)
    if disk_cache_bytes is not None:
        _disk_cache_bytes = disk_cache_bytes
