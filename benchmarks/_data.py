"""Readers of the evaluation data: TSV files, gzip, UTF-8, with a header and no quoting."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read(folder: Path, name: str) -> pd.DataFrame:
    """Read one of the files that ``--data`` holds."""
    path = Path(folder) / f"{name}.tsv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: --data names the folder that holds {path.name}.")
    return pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False)
