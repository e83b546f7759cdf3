"""Several processes that train one model, each on its share of every step: what ``accelerate launch`` starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch


class Workers:
    """The processes of one training; here it is alone.

    Attributes
    ----------
    world_size, rank : int
        How many there are, and which one this is.
    """

    world_size = 1
    rank = 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Return this worker's rows of a step."""
        return rows[self.rank :: self.world_size]

    def all_reduce(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all workers."""

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by that of the first worker."""


class LaunchedWorkers(Workers):
    """The processes that ``accelerate launch`` started; each ends up with the same model.

    Parameters
    ----------
    cpu : bool
        Compute on the CPU although there may be GPUs.

    Attributes
    ----------
    device : torch.device
        That of this process.
    """

    def __init__(self, *, cpu: bool) -> None:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ImportError(
                "This is one of several processes (WORLD_SIZE is set), which train together by accelerate: "
                "pip install accelerate, or unset WORLD_SIZE."
            ) from error
        state = PartialState(cpu=cpu)
        self.world_size, self.rank = state.num_processes, state.process_index
        self.device = state.device

    def all_reduce(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all workers."""
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by that of the first worker."""
        torch.distributed.broadcast(tensor, src=0)


def find_workers(device: torch.device, random_state: Any) -> tuple[Workers, torch.device]:
    """Return the workers of this training, and the device of this one: `device` where it is alone.

    Raises
    ------
    ValueError
        There are several, and `random_state` is not an int: they would draw
        different numbers.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Workers(), device
    if not isinstance(random_state, Integral):
        raise ValueError(
            f"random_state={random_state!r}: several processes train together here (WORLD_SIZE is set), and "
            "have to draw the same numbers. Give an int."
        )
    workers = LaunchedWorkers(cpu=device.type == "cpu")
    return workers, workers.device
