"""The folder that a command writes: ``results.json`` and ``model/``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._persistence import is_saved_estimator, package_versions
from ..checkpoints.digests import file_sha256

_RESULTS, _MODEL = "results.json", "model"


def check_output_dir(output_dir: Path, command: str) -> None:
    """Refuse a folder that holds anything but an earlier result of the same command, or that cannot be written.

    Raises
    ------
    FileExistsError
        It does, or it is a file.
    NotADirectoryError
        It would lie below a file.
    PermissionError
        Nothing may be written there.
    """
    nearest = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if nearest != output_dir and not nearest.is_dir():
        raise NotADirectoryError(f"{output_dir} lies below the file {nearest}. Choose another --output-dir.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{nearest} cannot be written. Choose another --output-dir.")
    if nearest != output_dir:
        return
    if not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file. Choose another --output-dir.")
    others = sorted(
        path.name for path in output_dir.iterdir() if path.name not in (_RESULTS, f".{_RESULTS}", _MODEL)
    )
    results = output_dir / _RESULTS
    if not others and any(output_dir.iterdir()):
        found = _command_of(results)
        if found is None:
            others = [results.name if results.exists() else _MODEL]
        elif found != command:
            raise FileExistsError(
                f"{output_dir} holds what skminilm {found} wrote: nothing is overwritten. Choose another --output-dir."
            )
    model = output_dir / _MODEL
    if not others and model.exists() and not is_saved_estimator(model):
        others = [_MODEL]
    if others:
        raise FileExistsError(
            f"{output_dir} holds something else than an earlier result ({', '.join(others[:3])}): nothing is "
            "overwritten. Choose another --output-dir."
        )


def _command_of(path: Path) -> str | None:
    """Return the command that wrote a file of results, or None if none did."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["skminilm_command"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_model(output_dir: Path, command: str, estimator: Any) -> None:
    """Write the model, before it is scored."""
    output_dir.mkdir(parents=True, exist_ok=True)
    # The file is what makes a folder one of ours, and says meanwhile that the model is not of this run.
    _write(output_dir, command, {"scores": "not computed yet", "model": "not written yet"})
    estimator.save(output_dir / _MODEL)
    _write(output_dir, command, {"scores": "not computed yet"})


def write_results(output_dir: Path, command: str, estimator: Any, results: dict[str, Any]) -> Path:
    """Write what was found of the model, and return the path of the file."""
    settings = estimator.get_params(deep=False)
    versions = {"python": platform.python_version(), **package_versions()}
    return _write(output_dir, command, {**results, "settings": settings, "versions": versions})


def _write(output_dir: Path, command: str, content: dict[str, Any]) -> Path:
    # In ASCII: names of files need not be valid Unicode.
    text = json.dumps({"skminilm_command": command, **content}, indent=1, default=str)
    path, new = output_dir / _RESULTS, output_dir / f".{_RESULTS}"
    new.unlink(missing_ok=True)  # of an ended process, or a link to elsewhere
    with open(new, "x", encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(new, path)
    return path


def describe_files(files: Iterable[Path | str]) -> list[dict[str, str]]:
    """Return the path and the sha256 of each file; of the hub the address, which says the commit."""
    return [
        {"path": str(file), **({"sha256": file_sha256(file)} if isinstance(file, Path) else {})}
        for file in files
    ]
