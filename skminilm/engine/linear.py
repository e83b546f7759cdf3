"""Matrix products with the encoder's weights, as the hardware does them best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import kernels
from .kernels.layers import integer_product
from .modes import own_modes


class Linear(ABC):
    """Computes ``x @ weight.T + bias`` with the weights that a name stands for."""

    @abstractmethod
    def __call__(
        self, x: torch.Tensor, name: str, *, gelu: bool = False, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the product (n_tokens, n_outputs), through GELU or added to `residual` where asked."""

    def feed_forward(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        """Return what the feed-forward part of a layer adds to `x`, and `x`: (n_tokens, hidden_size)."""
        inner = self(x, prefix + "intermediate", gelu=True)
        return self(inner, prefix + "output", residual=x)


class LinearWithGradients(Linear):
    """Products with GELU and residual beside them, all with gradients.

    Parameters
    ----------
    weights : mapping of str to Tensor
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights

    def __call__(
        self, x: torch.Tensor, name: str, *, gelu: bool = False, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See :class:`Linear`."""
        y = self._product(x, name)
        if gelu:
            y = kernels.gelu(y)
        return y if residual is None else y + residual

    def _weights_of(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    @abstractmethod
    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor: ...


class PlainLinear(LinearWithGradients):
    """torch's own product, with gradients, on any device.

    Parameters
    ----------
    weights : mapping of str to Tensor
    """

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, *self._weights_of(name))

    def feed_forward(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        """See :class:`Linear`."""
        if not torch.is_grad_enabled() or x.device.type != "cpu":
            return super().feed_forward(x, prefix)
        inner = self(x, prefix + "intermediate", gelu=True)
        return _NarrowingLinear.apply(inner, *self._weights_of(prefix + "output")) + x


class _NarrowingLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` of an x with more columns than the result, with a backward pass made for that on a CPU."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        # The product takes half the time where the gradient is made contiguous first.
        of_weight = gradient.t().contiguous() @ x if needs_weight else None
        return gradient @ weight if needs_x else None, of_weight, gradient.sum(0) if needs_bias else None


class IntegerLinear(LinearWithGradients):
    """Products in 16-bit integers with gradients, for a CPU without bfloat16.

    Parameters
    ----------
    weights : mapping of str to Tensor
    """

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return IntegerProduct.apply(x, *self._weights_of(name))


class IntegerProduct(torch.autograd.Function):
    """``x @ weight.T + bias``, whose gradients are such products too."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        """Return the product; all are float32."""
        ctx.save_for_backward(x, weight)
        return integer_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        """Return the gradients of x, weight and bias where they are needed."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x = integer_product(gradient, weight.t()) if needs_x else None
        of_weight = integer_product(gradient.t(), x.t()) if needs_weight else None
        return of_x, of_weight, gradient.sum(0) if needs_bias else None


class PrepackedLinear(Linear):
    """oneDNN's product on prepacked matrices, without gradients.

    torch lays a matrix out anew in each call, which for one text costs more
    than the product; and MKL, its default for float32, is slow on AMD. GELU
    and the residual are computed before the product is rounded.

    Parameters
    ----------
    weights : mapping of str to Tensor
        With the biases.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._matrices: dict[str, torch.Tensor] = {}
        self._weights = weights

    def add(self, name: str, matrix: torch.Tensor) -> None:
        """Take a matrix (n_outputs, n_inputs) by the name of the weight."""
        self._matrices[name] = _ops()._reorder_linear_weight(matrix.contiguous())

    def __call__(
        self, x: torch.Tensor, name: str, *, gelu: bool = False, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See :class:`Linear`."""
        operator = _ops()._linear_pointwise
        matrix, bias = self._matrices[f"{name}.weight"], self._weights[f"{name}.bias"]
        if residual is not None:
            return operator.binary(x, residual, matrix, bias, "add")
        return operator(x, matrix, bias, "gelu" if gelu else "none", [], "none" if gelu else "")


def can_prepack(dtype: torch.dtype) -> bool:
    """Tell whether this torch has oneDNN's prepacked products, and whether they are right."""
    if dtype not in _can_prepack:
        _can_prepack[dtype] = _try_prepacked(dtype)
    return _can_prepack[dtype]


_can_prepack: dict[torch.dtype, bool] = {}


def _try_prepacked(dtype: torch.dtype) -> bool:
    # The operators are torch's own (its compiler emits them) but not public: they may change or be
    # missing, and then the plain product serves.
    generator = torch.Generator("cpu").manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
        for shape in ((3, 32), (48, 32), (48,), (3, 48))
    )
    try:
        with own_modes(inference=True):
            prepacked = PrepackedLinear({"w.bias": bias})
            prepacked.add("w.weight", weight)
            for gelu, added in ((False, None), (True, None), (False, residual)):
                found = prepacked(x, "w", gelu=gelu, residual=added)
                expected = PlainLinear({"w.weight": weight.float(), "w.bias": bias.float()})(
                    x.float(), "w", gelu=gelu, residual=None if added is None else added.float()
                )
                tolerance = 1e-4 if dtype == torch.float32 else 0.05
                if not torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance):
                    return False
    except Exception:  # whatever a future torch raises here, there is another way
        return False
    return True


def _ops():
    return torch.ops.mkldnn
