"""Compiles the kernels of the engine into the wheel, where there is a compiler."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

_FOLDER = Path("skminilm", "engine", "kernels")
_COMPILE = [
    "-std=gnu++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-rtti",
]
# Without -fopenmp: its functions come from the library that torch has loaded, so that both share their threads.
_LINK = ["-shared", "-Wl,--as-needed"]
# By the names that torch gives to what a processor can do.
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
_X86 = {"avx2": _AVX2, "avx512": _AVX512}
_TILES = ["-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"]  # GCC >= 11
# By library and source: the first that the compiler and its assembler know, used where the processor has them.
_OPTIONAL = {
    ("avx2", "layers"): [["-mavxvnni"]],
    ("avx512", "layers"): [
        ["-mavx512vnni", *_TILES],
        ["-mavx512vnni", "-mavx512bf16"],  # GCC >= 10
        ["-mavx512vnni"],
    ],
    ("avx512", "tiled_attention"): [_TILES],
    ("avx512", "paired_attention"): [["-mavx512bf16"]],
}


class KernelsBuildHook(BuildHookInterface):
    """Leaves the wheel as it is, in Python alone, where the kernels cannot be compiled."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the platform in the wheel's tag."""
        folder = Path(self.root) / _FOLDER
        for old in folder.glob("_kernels_*.so"):
            old.unlink()
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if sys.platform != "linux" or compiler is None:
            return
        machine = platform.machine()
        for name, options in (_X86 if machine == "x86_64" else {machine: []}).items():
            try:
                self._compile(compiler, folder, name, options)
            except subprocess.CalledProcessError as error:
                self.app.display_warning(f"No compiled kernels for {name}: {error.stderr.strip()}")
                continue
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{next(platform_tags())}"
            build_data["artifacts"].append(f"/{(_FOLDER / f'_kernels_{name}.so').as_posix()}")

    def _compile(self, compiler: str, folder: Path, name: str, options: list[str]) -> None:
        objects = []
        library = folder / f"_kernels_{name}.so"
        try:
            for source in sorted(folder.glob("*.cpp")):
                objects.append(folder / f"{source.stem}_{name}.o")
                command = [compiler, *_COMPILE, *options, "-c", source, "-o", objects[-1]]
                _run_first([[*command, *more] for more in (*_OPTIONAL.get((name, source.stem), []), [])])
            _run([compiler, *_LINK, *objects, "-o", library])
        finally:
            for file in objects:
                file.unlink(missing_ok=True)


def _run_first(commands: list[list]) -> None:
    """Run the first command that succeeds."""
    *others, last = commands
    for command in others:
        with contextlib.suppress(subprocess.CalledProcessError):
            return _run(command)
    return _run(last)


def _run(command: list) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
