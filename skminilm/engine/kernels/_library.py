"""The library of compiled kernels, which lies beside this file where it was built (see ``hatch_build.py``)."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

# A library of other sources than these is not used.
_VERSION = 7
_limit = threading.local()


@cache
def load() -> ctypes.CDLL | None:
    """Return the library for this processor, or None where there is none."""
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name(f"_kernels_{_instructions()}.so")))
    except OSError:  # not built here, or this torch does not bring the OpenMP that it shares with torch
        return None
    return library if library.kernels_version() == _VERSION else None


def _instructions() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    return torch.backends.cpu.get_cpu_capability().lower()


def call(name: str, tensors: tuple[torch.Tensor | None, ...], *arguments) -> None:
    """Call a function of the library with the places of tensors, other arguments and the number of threads."""
    n_threads = getattr(_limit, "n_threads", None) or torch.get_num_threads()
    places = (ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)
    if getattr(load(), name)(*places, *arguments, n_threads):
        raise MemoryError(f"There is too little memory for {name}.")


@contextmanager
def on_threads(n_threads: int) -> Iterator[None]:
    """Let functions of the library that this thread calls use so many; torch's own limit is one for all threads."""
    before = getattr(_limit, "n_threads", None)
    _limit.n_threads = n_threads
    try:
        yield
    finally:
        _limit.n_threads = before
