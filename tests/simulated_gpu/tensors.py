"""Tensors that say they are on a GPU."""

from __future__ import annotations

import contextlib
import threading
import weakref

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from .runtime import N_DEVICES

aten = torch.ops.aten
CPU = torch.device("cpu")
_READS_NUMBERS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# In float16 the CPU takes twenty times as long for them as in float32.
_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


class WaitedForGPU(RuntimeError):
    """The host waited, and the test had asked to hear of it."""


class GPUTensor(torch.Tensor):
    """Says it is on `device`; its numbers are `inner`, a tensor on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> GPUTensor:
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset())
        with torch.inference_mode(inner.is_inference()):  # there, views of other tensors are none
            tensor = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, dtype=inner.dtype, device=device, **layout
            )
        tensor.inner = inner
        _allocated[id(inner)] = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _compute(operator, args, kwargs or {})

    def numpy(self, *, force=False):
        raise TypeError(f"can't convert a tensor on {self.device} to numpy: use Tensor.cpu() first")

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"{self.inner!r} on {self.device}"


_allocated: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()


class _OnGPUs(TorchDispatchMode):
    """Takes the operations of a thread, those that make tensors of none too."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd"):
            with self:
                result = operator.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _compute(operator, args, kwargs)


def _compute(operator, args, kwargs):
    """Compute as a GPU would, where one is concerned."""
    pin = kwargs.get("pin_memory")
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = _device_of_result(operator, args, kwargs, tensors)
    if device.type != "cuda" and not any(isinstance(tensor, GPUTensor) for tensor in tensors):
        result = operator(*args, **kwargs)
        if pin:
            result.is_in_pinned_memory = True
        return result
    if _must_not_wait and (reason := _waits(operator, args, kwargs)):
        raise WaitedForGPU(f"{operator} makes the host wait: {reason}")
    cpu_args, cpu_kwargs = tree_map_only(GPUTensor, lambda tensor: tensor.inner, (args, kwargs))
    if "device" in kwargs:
        cpu_kwargs["device"] = CPU
    result = _kernel(operator, args[0] if args else None)(*cpu_args, **cpu_kwargs)
    if operator is aten.copy_.default:
        return args[0]
    if operator is aten._local_scalar_dense.default or device == CPU:
        return result.clone() if result is cpu_args[0] else result
    result = tree_map_only(torch.Tensor, lambda tensor: GPUTensor(tensor, device), result)
    return return_and_correct_aliasing(operator, args, kwargs, result)


def _device_of_result(operator, args, kwargs, tensors) -> torch.device:
    """Return where the result will be.

    Raises
    ------
    RuntimeError
        The tensors are on several devices, or the device is not there.
    """
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
        if asked.type == "cuda":
            asked = torch.device("cuda", asked.index or 0)
        if asked.type == "cuda" and asked.index >= N_DEVICES:
            raise RuntimeError(f"CUDA error: there is no {asked}")
    devices = {tensor.device for tensor in tensors if isinstance(tensor, GPUTensor)}
    if operator in _COPIES or not devices:
        return asked or (tensors[0].device if tensors else CPU)
    if operator not in _INDEXES:  # an index may be on the CPU, as may a number
        devices |= {tensor.device for tensor in tensors if tensor.ndim}
    if len(devices) > 1:
        raise RuntimeError(f"{operator} of tensors on {', '.join(map(str, devices))}")
    return asked or devices.pop()


def _waits(operator, args, kwargs) -> str | None:
    """Return why the host waits until the GPU has computed all before, or None."""
    if operator in _READS_NUMBERS:
        return "it reads numbers"
    if operator is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        return "the size of the result depends on numbers"
    if operator in _INDEXES:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "the size of the result depends on numbers"
        if any(index.device == CPU for index in indices):
            return "the index is on the CPU"
    if operator in _COPIES and (ends := _ends_of_copy(operator, args, kwargs)):
        is_pinned = any(getattr(end, "is_in_pinned_memory", False) for end in ends)
        if not (is_pinned and (kwargs.get("non_blocking") or True in args[2:])):
            return "only from and to pinned memory it would not, if told so"
    return None


def _ends_of_copy(operator, args, kwargs) -> tuple[torch.Tensor, ...]:
    """Return the tensors between which a copy goes from the host to a GPU or back, as far as they are there."""
    if operator is aten.copy_.default:
        return args[:2] if args[0].device != args[1].device else ()
    asked = kwargs.get("device")
    return args[:1] if asked is not None and torch.device(asked).type != args[0].device.type else ()


def _kernel(operator, first):
    """Return what computes the same as an operator of a GPU, on the CPU."""
    if operator is aten._flash_attention_forward.default:
        return _flash_attention
    if operator is aten._flash_attention_backward.default:
        return _flash_attention_backward
    if operator in _PRODUCTS and first.dtype == torch.float16:
        return lambda *factors, **options: operator(
            *(x.float() if isinstance(x, torch.Tensor) else x for x in factors), **options
        ).half()
    return operator


def _flash_attention(
    query, key, value, cu_seqlens, _cu_keys, longest, _longest_key, dropout, causal, *_, **__
):
    """Attention of packed sequences (n_tokens, n_heads, head_size), with what FlashAttention asks of them."""
    lengths = cu_seqlens.diff()
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens[[0, -1]].tolist() == [0, len(query)]
    assert lengths.max() <= longest
    assert (dropout, causal) == (0, False)
    heads = (x.float().transpose(0, 1).split(lengths.tolist(), dim=1) for x in (query, key, value))
    attended = [F.scaled_dot_product_attention(*part).transpose(0, 1) for part in zip(*heads, strict=True)]
    of_no_use = (torch.empty(0) for _ in range(4))  # here: what the backward pass and debugging need
    return torch.cat(attended).to(query.dtype), *of_no_use


def _flash_attention_backward(gradient, query, key, value, _attended, _sums, cu_seqlens, *_, **__):
    """What the gradient of the attended values makes of those of queries, keys and values."""
    lengths, scale = cu_seqlens.diff().tolist(), query.shape[-1] ** -0.5
    of_parts = []
    heads = (x.float().transpose(0, 1).split(lengths, dim=1) for x in (gradient, query, key, value))
    for of_attended, q, k, v in zip(*heads, strict=True):
        weights = (scale * q @ k.transpose(1, 2)).softmax(-1)
        of_weights = of_attended @ v.transpose(1, 2)
        of_scores = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
        parts = of_scores @ k, of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ of_attended
        of_parts.append([part.transpose(0, 1).to(query.dtype) for part in parts])
    return tuple(map(torch.cat, zip(*of_parts, strict=True)))


class _Event:
    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


_must_not_wait = False


def simulate_gpus(request, monkeypatch) -> None:
    """Let torch find GPUs until the end of a test."""

    def set_sync_debug_mode(mode):
        global _must_not_wait
        _must_not_wait = mode == "error"

    def memory_allocated(device=None):
        storages = [tensor.untyped_storage() for tensor in list(_allocated.values())]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    answers = dict(
        is_available=lambda: True,
        device_count=lambda: N_DEVICES,
        current_device=lambda: 0,
        current_stream=lambda device=None: None,
        get_device_name=lambda device=None: "simulated",
        get_device_capability=lambda device=None: (8, 0),
        is_bf16_supported=lambda including_emulation=True: True,
        device=lambda device: contextlib.nullcontext(),
        empty_cache=lambda: None,
        memory_allocated=memory_allocated,
        set_sync_debug_mode=set_sync_debug_mode,
        Event=_Event,
        _lazy_init=lambda: None,
    )
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    make_tensor, run_thread = torch.tensor, threading.Thread.run

    def tensor(data, *, device=None, **options):  # which no mode sees
        made = make_tensor(data, **options)
        return made if device is None else made.to(device)

    def run(thread):  # modes are those of a thread
        with _OnGPUs():
            run_thread(thread)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(threading.Thread, "run", run)
    mode = _OnGPUs()
    mode.__enter__()
    request.addfinalizer(lambda: mode.__exit__(None, None, None))
