"""Several processes that train one model, each on its share of every step: what ``accelerate launch`` starts."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from joblib.parallel import get_active_backend

from ..engine.hardware import is_alone


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


def find_workers(device: torch.device, precision: str, random_state: Any) -> tuple[Workers, torch.device]:
    """Return the workers of this training, and the device of this one: `device` where it is alone.

    Raises
    ------
    ValueError
        There are several, and `random_state` is not an int: they would draw
        different numbers. Or this is a worker of joblib, they were started for
        another kind of device, or some of them alone scale the loss.
    """
    if is_alone():
        return Workers(), device
    if not isinstance(random_state, Integral):
        raise ValueError(
            f"random_state={random_state!r}: several processes train together here (WORLD_SIZE is set), and "
            "have to draw the same numbers. Give an int."
        )
    if get_active_backend()[0].nesting_level:
        # It has the environment of the process that started it, and would be taken for that one.
        raise ValueError(
            "Several processes train together here (WORLD_SIZE is set), and workers of joblib cannot train with them: "
            "use n_jobs=1 around this estimator, or unset WORLD_SIZE."
        )
    workers = LaunchedWorkers(cpu=device.type == "cpu")
    started = workers.device.type
    if started != device.type:  # which happens once a process
        raise ValueError(
            f"The processes that train together were started on {workers.device}, and this estimator computes on "
            f"{device}: use device={started!r}, as the estimator or Accelerator() that came first."
        )
    if workers.world_size > 1:
        _check_scales(workers, precision)
    return workers, workers.device


def _check_scales(workers: LaunchedWorkers, precision: str) -> None:
    """Raise ValueError where the gradients of some workers alone are scaled, as those of unlike GPUs would be."""
    n_scaled = torch.tensor([float(precision == "fp16")], dtype=torch.float32, device=workers.device)
    workers.all_reduce([n_scaled])
    if 0 < float(n_scaled) < workers.world_size:
        raise ValueError(
            "precision='auto' is precision='fp16' in some of the processes that train together, and another one in "
            "the rest, whose GPUs differ. Give precision='fp16' or 'fp32'."
        )
