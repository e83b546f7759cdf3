"""The command ``skminilm``: evaluations from a data folder to the table beside the published one.

It needs the extra ``cli`` (typer and rich); nothing else in the package imports this.
"""

from __future__ import annotations

import sys

_NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command line."""
    try:
        from ._app import app
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        if missing not in _NEEDED:
            raise
        sys.exit(f'The command skminilm needs {missing}: pip install "skminilm[cli]"')
    app()
