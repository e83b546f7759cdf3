"""Parameters in float32 with views in the precision of the computation, and how a step changes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ..engine import kernels

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_FIRST_SCALE, _LEAST_SCALE = 2.0**16, 2.0**-14


class FlatParameters:
    """Parameters side by side in one float32 vector, with views in the precision of the computation.

    On a CPU a step goes parameter by parameter, from its gradient to its new
    view, so that no gradient is held in float32 for all of them. A GPU takes
    all at once: it would wait for the many small calls. (torch.optim.AdamW
    wants gradients in the precision of the parameters, and takes seconds to
    make.)

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Where they start; copied.
    dtype : torch.dtype
        Of the views.
    learning_rate, weight_decay : float

    Attributes
    ----------
    master : Tensor of float32, shape (n,)
        What steps change.
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
        self._weight_decay = weight_decay
        self.master = torch.cat([tensor.detach().float().flatten() for tensor in tensors.values()])
        same = dtype == torch.float32
        self._computed = self.master if same else self.master.to(dtype)
        self.views = {
            name: torch.nn.Parameter(values.detach()) for name, values in self._split(self._computed).items()
        }
        self._moments: list[torch.Tensor] = []  # first, second; from the first step on
        self._n_steps = 0
        self._steps_at_once = self.master.device.type == "cuda"

    def _split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def _stepped(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts that a step changes one after the other."""
        return [flat] if self._steps_at_once else list(self._split(flat).values())

    def take_gradients(self) -> list[torch.Tensor]:
        """Return the gradients, 0 where there is none, and forget them: one a view, or on a GPU all in one."""
        gradients = [
            torch.zeros_like(view) if view.grad is None else view.grad for view in self.views.values()
        ]
        self.clear_gradients()
        if self._steps_at_once:
            gradients = [torch.cat([gradient.flatten() for gradient in gradients])]
        return gradients

    def clear_gradients(self) -> None:
        """Forget the gradient of the views."""
        for view in self.views.values():
            view.grad = None

    def step(self, gradients: Iterable[torch.Tensor], rate: float, scale: float) -> None:
        """Change the parameters by AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101), and the views.

        Parameters
        ----------
        gradients : iterable of Tensor
            As :meth:`take_gradients` returns them; they may be overwritten.
        rate : float
            Of `learning_rate`, from 0 to 1.
        scale : float
            What gradients are multiplied by.
        """
        if not self._moments:
            self._moments = [torch.zeros_like(self.master) for _ in range(2)]
        self._n_steps += 1
        options: dict[str, Any] = dict(
            learning_rate=self.learning_rate * rate,
            weight_decay=self._weight_decay,
            betas=(_BETA_1, _BETA_2),
            epsilon=_EPSILON,
            n_steps=self._n_steps,
            scale=scale,
        )
        parts = map(self._stepped, (self._computed, self.master, *self._moments))
        same = self._computed is self.master
        with torch.no_grad():
            for gradient, view, master, *moments in zip(gradients, *parts, strict=True):
                kernels.adamw(master, moments, gradient, None if same else view, **options)

    def release_steps(self) -> None:
        """Free the memory that only steps need: there will be no further one."""
        self.clear_gradients()
        self._moments = []

    def is_finite(self) -> bool:
        """Tell whether no parameter is infinite or NaN."""
        # By the extremes: `isfinite` of all would take more memory than a step.
        return bool(torch.stack(torch.aminmax(self.master)).isfinite().all())

    def publish(self) -> None:
        """Bring a changed `master` into the views."""
        if self._computed is not self.master:
            with torch.no_grad():
                self._computed.copy_(self.master)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters as float32 arrays of their own."""
        return {name: part.cpu().numpy().copy() for name, part in self._split(self.master).items()}


def norm(gradients: Iterable[torch.Tensor]) -> float:
    """Return the Euclidean norm of all gradients together."""
    # Asked for in float32, each gradient would be copied first. The norm of one may be too large for float16.
    norms = [
        torch.linalg.vector_norm(
            gradient, dtype=torch.float32 if gradient.dtype == torch.float16 else None
        ).float()
        for gradient in gradients
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


class LossScale:
    """What the loss is multiplied by so that gradients in float16 do not vanish.

    Halved where gradients overflow, doubled after many steps without (Micikevicius
    et al., 2018, arXiv:1710.03740, section 3.2; the constants are those of
    torch.amp.GradScaler).

    Parameters
    ----------
    enabled : bool
        Otherwise it is 1.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = _FIRST_SCALE if enabled else 1.0
        self._n_good = 0

    @property
    def may_recover(self) -> bool:
        """Whether gradients that overflowed may be finite at a smaller scale."""
        return self.enabled and self.value >= _LEAST_SCALE

    def update(self, overflowed: bool) -> None:
        """Adjust the scale after a step."""
        if not self.enabled:
            return
        self._n_good = 0 if overflowed else self._n_good + 1
        if overflowed:
            self.value /= 2
        elif self._n_good == 2000:
            self.value *= 2
            self._n_good = 0
