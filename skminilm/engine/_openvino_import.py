"""OpenVINO and NNCF, imported without their telemetry.

Importing them reports to their makers, and writes an identity into the home
folder, unless the user opted out. Both stay silent in what they take for a
continuous-integration job; they look once, while they are imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_SILENCE = {"CI": "true", "NNCF_CI": "1"}
PACKAGES = {"fp32": ("openvino",), "bf16": ("openvino",), "int8": ("openvino", "nncf")}


def check_installed(precision: str) -> None:
    """Raise where the extra's packages are missing.

    Raises
    ------
    ImportError
    """
    missing = [package for package in PACKAGES[precision] if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"backend='openvino' with precision={precision!r} needs {' and '.join(missing)}: install with "
            "pip install 'skminilm[openvino]'."
        )


def import_silently(name: str) -> ModuleType:
    """Import OpenVINO or NNCF.

    Raises
    ------
    ImportError
        It does not fit to the other packages here.
    """
    variables = dict(_SILENCE)
    try:
        Path.home()
    except RuntimeError:  # their telemetry asks for one before it looks whether it may report
        variables["HOME"] = os.sep
    with _environment(variables):
        try:
            return importlib.import_module(name)
        except (AttributeError, ImportError) as error:  # NNCF names what an older OpenVINO does not have
            raise ImportError(
                f"{name} cannot be imported here ({error}): pip install -U 'skminilm[openvino]' openvino nncf."
            ) from error


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
