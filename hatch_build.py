"""Compiles the kernels of the engine into the wheel, where there is a compiler."""

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

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
    ("avx2", "integer_product"): [["-mavxvnni"]],
    ("avx512", "layers"): [
        ["-mavx512vnni", *_TILES],
        ["-mavx512vnni", "-mavx512bf16"],  # GCC >= 10
        ["-mavx512vnni"],
    ],
    ("avx512", "integer_product"): [["-mavx512vnni"]],
    ("avx512", "tiled_attention"): [_TILES],
    ("avx512", "paired_attention"): [["-mavx512bf16"]],
}


class KernelsBuildHook(BuildHookInterface):
    """Leaves the wheel as it is, in Python alone, where the kernels cannot be compiled."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the platform in the wheel's tag."""
        sources = libraries = Path(self.root) / _FOLDER
        self._temporary = None
        if os.access(sources, os.W_OK):  # a Python that is started in a checkout imports it
            for old in libraries.glob("_kernels_*.so"):
                old.unlink()
        else:
            self._temporary = tempfile.TemporaryDirectory()
            libraries = Path(self._temporary.name)
        if sys.platform != "linux":
            return
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        if not compiler or shutil.which(compiler[0]) is None:
            self.app.display_warning(f"No compiled kernels: there is no {shlex.join(compiler) or 'CXX'}.")
            return
        machine = platform.machine()
        for name, options in (_X86 if machine == "x86_64" else {machine: []}).items():
            library = libraries / f"_kernels_{name}.so"
            try:
                _compile(compiler, sources, library, name, options)
            except subprocess.CalledProcessError as error:
                self.app.display_warning(f"No compiled kernels for {name}: {error.stderr.strip()}")
                continue
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{machine}"
            place = (_FOLDER / library.name).as_posix()
            if self._temporary:
                build_data["force_include"][str(library)] = place
            else:
                build_data["artifacts"].append(f"/{place}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what is in the wheel now."""
        if self._temporary:
            self._temporary.cleanup()


def _compile(compiler: list[str], sources: Path, library: Path, name: str, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        objects = []
        for source in sorted(sources.glob("*.cpp")):
            objects.append(Path(temporary) / f"{source.stem}.o")
            command = [*compiler, *_COMPILE, *options, "-c", source, "-o", objects[-1]]
            _run_first([[*command, *more] for more in (*_OPTIONAL.get((name, source.stem), []), [])])
        _run([*compiler, *_LINK, *objects, "-o", library])


def _run_first(commands: list[list]) -> None:
    """Run the first command that succeeds."""
    *others, last = commands
    for command in others:
        with contextlib.suppress(subprocess.CalledProcessError):
            return _run(command)
    return _run(last)


def _run(command: list) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
