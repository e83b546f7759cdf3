"""What several processes that train together have to agree on."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any


def check_workers(random_state: Any) -> None:
    """Refuse a fit whose processes would draw different numbers.

    Raises
    ------
    ValueError
        This is one of several processes (WORLD_SIZE is set), and
        `random_state` is not an int.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not isinstance(random_state, Integral):
        raise ValueError(
            f"random_state={random_state!r}: several processes train together here (WORLD_SIZE is set), and "
            "have to draw the same numbers. Give an int."
        )
