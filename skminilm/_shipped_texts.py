"""The texts that ship with the package."""

from __future__ import annotations

import csv
from importlib.resources import files

_FOLDER = files(__package__).joinpath("datasets", "data")


def support_request_rows() -> list[dict[str, str]]:
    """Return the rows of the support requests, by the names of their columns."""
    with _FOLDER.joinpath("support_requests.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def calibration_texts() -> list[str]:
    """Return real texts: requests in 16 languages, alone and joined, and prose with all its punctuation.

    Signs matter: without percentages, parentheses and quotation marks among
    these texts, those that have them were the ones with the worst vectors.
    """
    requests = [row["text"] for row in support_request_rows()]
    prose = _FOLDER.joinpath("calibration_texts.txt").read_text(encoding="utf-8").splitlines()

    def joined(size: int) -> list[str]:
        return [" ".join(requests[start : start + size]) for start in range(0, len(requests), size)]

    return prose + requests[::16] + joined(4)[::2] + joined(12)
