"""The library of compiled kernels, which lies beside this file where it was built (see ``hatch_build.py``)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from ..._warnings import warn

# A library of other sources than these is not used.
_VERSION = 8
_limit = threading.local()


@cache
def load() -> ctypes.CDLL | None:
    """Return the library for this processor, or None where there is none.

    Warns
    -----
    UserWarning
        There is one of other sources, as after an update of an editable installation.
    """
    path = Path(__file__).with_name(f"_kernels_{instructions()}.so")
    if not path.exists():
        return None
    _show_openmp()
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # of another platform, or this torch does not bring the OpenMP that it shares with torch
        return None
    if library.kernels_version() == _VERSION:
        return library
    warn(
        f"The compiled kernels in {path.parent} were built for another version of this package and are not used, "
        "so everything is slower. Install the package again to build them anew."
    )
    return None


def _show_openmp() -> None:
    """Let libraries that are loaded from now on find the OpenMP of torch, which on ARM keeps it to itself."""
    packages = Path(torch.__file__).parents[1]
    for pattern in ("torch/lib/libgomp*", "torch.libs/libgomp*"):
        for path in packages.glob(pattern):
            with contextlib.suppress(OSError):  # torch has not loaded it
                ctypes.CDLL(str(path), os.RTLD_NOLOAD | os.RTLD_GLOBAL)


def instructions() -> str:
    """Return the name of the library for this processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    return torch.backends.cpu.get_cpu_capability().lower()


def call(name: str, tensors: tuple[torch.Tensor | None, ...], *arguments) -> None:
    """Call a function of the library with the places of tensors, other arguments and the number of threads."""
    n_threads = getattr(_limit, "n_threads", None) or torch.get_num_threads()
    places = (ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)
    if getattr(load(), name)(*places, *arguments, n_threads):
        raise MemoryError(f"There is too little memory for {name}.")


@contextlib.contextmanager
def on_threads(n_threads: int) -> Iterator[None]:
    """Let functions of the library that this thread calls use so many; torch's own limit is one for all threads."""
    before = getattr(_limit, "n_threads", None)
    _limit.n_threads = n_threads
    try:
        yield
    finally:
        _limit.n_threads = before
