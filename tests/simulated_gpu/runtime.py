"""The runtime of a GPU that is none, compiled and loaded before torch."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

N_DEVICES = 2


def load_runtime() -> None:
    """Tell torch, which must not be imported yet, that it was built for CUDA and has devices."""
    if "torch" in sys.modules:
        raise RuntimeError("The plugin has to be loaded before torch: python -m pytest -p simulated_gpu")
    torch = Path(importlib.util.find_spec("torch").origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "runtime.so"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", f"-L{torch / 'lib'}"]
        source = Path(__file__).with_name("runtime.cpp")
        command.append(f"-DN_DEVICES={N_DEVICES}")
        subprocess.run([*command, source, "-o", library, "-lc10", "-ltorch_cpu"], check=True)
        for needed in ("libtorch_global_deps.so", "libtorch_cpu.so"):
            ctypes.CDLL(str(torch / "lib" / needed), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
