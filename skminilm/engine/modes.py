"""The modes of torch in which everything here is computed, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_modes(*, inference: bool) -> Iterator[None]:
    """Compute in the precision that was asked for, and with gradients or without.

    The caller may be inside ``torch.inference_mode`` or ``torch.autocast``.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(inference))
        for device in ("cpu", "cuda"):  # to ask whether there is a GPU would spoil the forks of this process
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
