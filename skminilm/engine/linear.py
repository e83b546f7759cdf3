"""Matrix products with the encoder's weights, as the hardware does them best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F


class Linear(Protocol):
    """Computes ``x @ weight.T + bias`` with the weights that a name stands for."""

    def __call__(
        self, x: torch.Tensor, name: str, *, gelu: bool = False, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the product (n_tokens, n_outputs), through GELU or added to `residual` where asked."""


def plain_linear(weights: Mapping[str, torch.Tensor]) -> Linear:
    """Return torch's own product, with gradients, on any device."""

    def linear(
        x: torch.Tensor, name: str, *, gelu: bool = False, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        if gelu:
            y = F.gelu(y)
        return y if residual is None else y + residual

    return linear


def prepack(matrix: torch.Tensor) -> torch.Tensor:
    """Lay a weight out for :func:`prepacked_linear`."""
    return _ops()._reorder_linear_weight(matrix.contiguous())


def prepacked_linear(matrices: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> Linear:
    """Return the product on prepacked matrices, with the biases among `weights`, without gradients.

    torch lays a matrix out anew in each call, which for one text costs more
    than the product; and MKL, its default for float32, is slow on AMD. GELU
    and the residual are computed before the product is rounded.
    """

    def linear(
        x: torch.Tensor, name: str, *, gelu: bool = False, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _product(x, matrices[f"{name}.weight"], weights[f"{name}.bias"], gelu, residual)

    return linear


def can_prepack(dtype: torch.dtype) -> bool:
    """Tell whether this torch has oneDNN's prepacked products, and whether they are right."""
    if dtype not in _can_prepack:
        _can_prepack[dtype] = _try_prepacked(dtype)
    return _can_prepack[dtype]


_can_prepack: dict[torch.dtype, bool] = {}


def _try_prepacked(dtype: torch.dtype) -> bool:
    # The operators are torch's own (its compiler emits them) but not public: they may change or be
    # missing, and then the plain product serves.
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 32), (48, 32), (48,), (3, 48))
    )
    try:
        with torch.inference_mode():
            packed = prepack(weight)
            for gelu, added in ((False, None), (True, None), (False, residual)):
                found = _product(x, packed, bias, gelu, added)
                expected = plain_linear({"w.weight": weight.float(), "w.bias": bias.float()})(
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


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gelu: bool,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    operator = _ops()._linear_pointwise
    if residual is not None:
        return operator.binary(x, residual, weight, bias, "add")
    return operator(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
