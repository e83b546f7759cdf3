"""Parameters as the optimizer likes them: side by side in one vector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


class FlatParameters:
    """Parameters side by side in one float32 vector, with views in the precision of the computation.

    A step of the optimizer, the gradients' norm and the casts are one call
    each instead of one for each of a hundred tensors.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Where they start; copied.
    dtype : torch.dtype
        Of the views.
    learning_rate, weight_decay : float
        For the optimizer.

    Attributes
    ----------
    master : Tensor of float32, shape (n,)
        What the optimizer changes; its gradient is float32 too.
    views : dict of str to torch.nn.Parameter
        The parameters by name, leaves of the computation.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.master = torch.cat([tensor.detach().float().flatten() for tensor in tensors.values()])
        self.master.grad = torch.zeros_like(self.master)
        same = dtype == torch.float32
        self._computed = self.master if same else self.master.to(dtype)
        self.views = {
            name: torch.nn.Parameter(values.detach()) for name, values in self._split(self._computed).items()
        }
        self._gradients = list(self._split(self.master.grad).values())

    def _split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def collect_gradient(self) -> None:
        """Bring the gradient of the views, 0 where there is none, into `master.grad`, and clear it."""
        for target, view in zip(self._gradients, self.views.values(), strict=True):
            if view.grad is None:
                target.zero_()
            else:
                target.copy_(view.grad)
        self.clear_gradient()

    def clear_gradient(self) -> None:
        """Forget the gradient of the views."""
        for view in self.views.values():
            view.grad = None

    def release_gradient(self) -> None:
        """Free the memory of the gradient: there will be no further step."""
        self.clear_gradient()
        self.master.grad = None
        self._gradients = []

    def publish(self) -> None:
        """Bring a changed `master` into the views."""
        if self._computed is not self.master:
            with torch.no_grad():
                self._computed.copy_(self.master)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters as float32 arrays of their own."""
        return {name: part.cpu().numpy().copy() for name, part in self._split(self.master).items()}
