"""What every benchmark begins and ends with: its options, the evaluation data, a file of figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd


def options_parser(description: str | None, *, reference: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks share.

    Parameters
    ----------
    description : str
        The docstring of the benchmark.
    reference : bool, default=False
        Offer ``--reference``, for those that write the reference checkpoint.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the evaluation data")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    if reference:
        parser.add_argument("--reference", type=Path, help="keep the reference checkpoint in this folder")
    return parser


def read(folder: Path, name: str) -> pd.DataFrame:
    """Read one of the TSV files (gzip, UTF-8, with a header and no quoting) that ``--data`` holds."""
    path = Path(folder) / f"{name}.tsv.gz"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: --data names the folder that holds {path.name}.")
    return pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False)


def write_figures(path: Path | None, figures: object) -> None:
    """Write figures as JSON where ``--json`` asked for it."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1, default=float))
