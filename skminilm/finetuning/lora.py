"""Low-rank adapters on the layers' matrices (Hu et al., 2021, arXiv:2106.09685), by peft."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from ..engine.linear import IntegerProduct, LinearWithGradients
from ..engine.weights import LORA_RANK, LORA_SCALE

LORA = "lora"


def _peft():
    try:
        import peft
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "peft":
            raise ImportError("trainable='lora' needs peft: pip install 'skminilm[lora]'.") from error
        raise ImportError(
            f"trainable='lora' needs peft, and the one here cannot be imported ({error}): pip install -U peft."
        ) from error
    return peft


class _InIntegers(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return IntegerProduct.apply(x, self.weight, self.bias)


class _Matrices(torch.nn.Module):
    """The layers' matrices as modules, which is what peft can adapt; their numbers come later."""

    def __init__(self, weights: Mapping[str, torch.Tensor], module: type[torch.nn.Linear]) -> None:
        super().__init__()
        for name in _matrix_names(weights):
            n_outputs, n_inputs = weights[f"{name}.weight"].shape
            self.add_module(_module_name(name), module(n_inputs, n_outputs, device="meta"))


def _matrix_names(weights: Mapping[str, torch.Tensor]) -> list[str]:
    return [n.removesuffix(".weight") for n, t in weights.items() if n.startswith("layers.") and t.ndim == 2]


def _module_name(name: str) -> str:
    return name.replace(".", "_")


class AdaptedLayers(LinearWithGradients):
    """The layers' matrices with adapters that change nothing yet.

    Parameters
    ----------
    weights : mapping of str to Tensor
        The network.
    seed : int
        For the random half of each adapter; torch's own random state is left alone.
    in_integers : bool, default=False
        Multiply by the matrices, not by the adapters, in 16-bit integers.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], seed: int, in_integers: bool = False) -> None:
        super().__init__(weights)
        peft = _peft()
        matrices = _Matrices(weights, _InIntegers if in_integers else torch.nn.Linear)
        self._modules = {name: _module_name(name) for name in _matrix_names(weights)}
        config = peft.LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_RANK * LORA_SCALE, target_modules=list(self._modules.values())
        )
        # On the meta device nothing is drawn: peft draws from the random state of the whole process, in torch's
        # default dtype. (Its low_cpu_mem_usage would do that too, for all threads of the process.)
        with torch.device("meta"):
            self._adapted = peft.inject_adapter_in_model(config, matrices)
        for name, module_name in self._modules.items():
            module = self._adapted.get_submodule(module_name).base_layer
            module.weight = torch.nn.Parameter(weights[f"{name}.weight"], requires_grad=False)
            module.bias = torch.nn.Parameter(weights[f"{name}.bias"], requires_grad=False)
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, part in self._parts():
            start = torch.zeros(part.weight.shape, dtype=torch.float32, device="cpu")
            if name.endswith("lora_A"):
                torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)  # as peft does
            part.weight = torch.nn.Parameter(start.to(weights[name.rpartition(".")[0]].device))

    def adapters(self) -> dict[str, torch.Tensor]:
        """Return the adapters by name."""
        return {name: part.weight.detach() for name, part in self._parts()}

    def use(self, adapters: Mapping[str, torch.nn.Parameter]) -> None:
        """Let products take these adapters, with gradients for them."""
        for name, part in self._parts():
            part.weight = adapters[name]

    def _parts(self) -> Iterator[tuple[str, torch.nn.Linear]]:
        for name, module_name in self._modules.items():
            module = self._adapted.get_submodule(module_name)
            yield f"{name}.weight.lora_A", module.lora_A["default"]
            yield f"{name}.weight.lora_B", module.lora_B["default"]

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._adapted.get_submodule(self._modules[name])(x)
