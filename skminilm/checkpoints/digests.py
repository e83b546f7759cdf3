"""Digests that identify checkpoints, weights and files: sha256, in hexadecimal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np


def combine_digests(parts: Mapping[str, object]) -> str:
    """Return one sha256 over named parts (digests, configurations)."""
    canonical = json.dumps(parts, sort_keys=True, default=asdict)
    return hashlib.sha256(canonical.encode()).hexdigest()


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the hexadecimal sha256 of named arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
