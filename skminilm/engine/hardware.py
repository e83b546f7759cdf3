"""What to compute with: library, device and precision."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from dataclasses import dataclass

import torch

from .._warnings import warn
from ..checkpoints import BertConfig
from .kernels import _library, layers

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int16": torch.int16,
    "int8": torch.int8,
}
BACKENDS = ("torch", "openvino")
PRECISIONS = tuple(_DTYPES)
# What is computed by the compiled kernels alone.
_COMPILED = ("int16", "int8")


@dataclass(frozen=True)
class Compute:
    """A library, a device and a precision; vectors of two of them are not the same.

    Attributes
    ----------
    device : torch.device
    precision : {"fp32", "bf16", "fp16", "int16", "int8"}
    backend : {"torch", "openvino"}
    calibration : tuple of str or None
        Texts that set the ranges of ``"int8"``; None takes those that ship.
    helpers : tuple of torch.device
        Other devices of the same kind, which share the work of one call.
    """

    device: torch.device
    precision: str
    backend: str = "torch"
    calibration: tuple[str, ...] | None = None
    helpers: tuple[torch.device, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers' weights."""
        return _DTYPES[self.precision]

    @property
    def training_dtype(self) -> torch.dtype:
        """Of the forward and backward passes of a training."""
        return layers.state_dtype(self.dtype)

    @property
    def is_calibrated(self) -> bool:
        """Whether ranges come from texts, with the checkpoint's own prompt before them."""
        return self.backend == "openvino" and self.precision == "int8"

    @property
    def namespace(self) -> str:
        """Names all of this that a vector depends on."""
        parts = [self.backend, self.device.type, self.precision]
        if self.backend == "torch" and self.precision == "int8" and layers.sums_in_16_bits():
            parts.append("sums in 16 bits")
        if self.calibration is not None:
            parts.append(hashlib.sha256(repr(self.calibration).encode()).hexdigest())
        return "/".join(parts)


def resolve_compute(
    backend: str,
    device: str,
    precision: str,
    calibration: tuple[str, ...] | None = None,
    *,
    config: BertConfig | None = None,
) -> Compute:
    """Return what ``"auto"`` stands for here, and check that the three go together.

    Parameters
    ----------
    backend, device, precision : str
    calibration : tuple of str or None
    config : BertConfig or None
        The shape of the checkpoint; None for another architecture.

    Raises
    ------
    ValueError
        Something is unknown, absent, or does not go with the rest.

    Warns
    -----
    UserWarning
        bfloat16 was asked for, and the processor does not multiply it.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: use {' or '.join(map(repr, BACKENDS))}.")
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(
            f"precision={precision!r} is not known: use 'auto', {', '.join(map(repr, PRECISIONS))}."
        )
    if backend == "openvino":
        if device not in ("auto", "cpu"):
            raise ValueError(
                f"backend='openvino' computes on the CPU: device={device!r} needs backend='torch'."
            )
        device = "cpu"
    resolved = resolve_device(device)
    if precision in _COMPILED and backend == "torch":
        _check_integers(precision, resolved)
    if precision == "int16" and backend == "openvino":
        raise ValueError("precision='int16' needs backend='torch': OpenVINO has 'fp32', 'bf16' and 'int8'.")
    if calibration is not None and (precision, backend) != ("int8", "openvino"):
        raise ValueError(
            "calibration_texts are for precision='int8' with backend='openvino', not "
            f"precision={precision!r} with backend={backend!r}."
        )
    helpers = _other_gpus(resolved) if device == "auto" else ()
    if precision == "auto":
        precision = _best_precision(resolved, backend, config)
    if precision == "fp16" and resolved.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU: use 'auto' or 'fp32' on a CPU.")
    if precision == "bf16" and resolved.type == "cpu" and _is_x86() and not cpu_has_bf16():
        warn(
            "precision='bf16' is slow on this processor, which has no instructions for it (AVX-512 BF16 or AMX): "
            "precision='auto' takes a fraction of the time, and is nearer to float32."
        )
    return Compute(resolved, precision, backend, calibration, helpers)


def _check_integers(precision: str, device: torch.device) -> None:
    if device.type != "cpu":
        raise ValueError(
            f"precision={precision!r} is for the CPU, not device={str(device)!r}: use device='cpu', or "
            "precision='auto'."
        )
    if not layers.is_available(_DTYPES[precision]):
        openvino = "backend='openvino' (pip install 'skminilm[openvino]'), or " if precision == "int8" else ""
        raise ValueError(
            f"precision={precision!r} with backend='torch' needs a processor with AVX2 and "
            "the compiled kernels (a C++ compiler when skminilm is installed on Linux), and one of them is not "
            f"here: use {openvino}precision='auto'."
        )


def resolve_device(device: str) -> torch.device:
    """Return the device that `device` stands for: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    ValueError
        No such device, it is not present here, or a fork made it unusable.

    Warns
    -----
    UserWarning
        A fork made the GPU unusable, or torch was not built for it, so that
        ``"auto"`` is the CPU.
    """
    is_auto = device == "auto"
    if is_auto:
        lost = _lost_gpu_by_fork()
        device = "cuda" if torch.cuda.is_available() and not lost else "cpu"
        if lost:
            warn(
                f"device='auto' is the CPU in this process, although there is a GPU: {_FORK_REMEDY}, or "
                "device='cpu' if this is what you want."
            )
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not known: use 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device={device!r} is not supported, CPUs and CUDA are: use 'auto', 'cpu', 'cuda' or 'cuda:N'."
        )
    if resolved.type == "cpu" and resolved.index is not None:
        raise ValueError(f"device={device!r} is not known: use 'cpu', which is all of them.")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not present: torch {torch.__version__} sees {torch.cuda.device_count()} "
            "CUDA device(s). Use device='auto' or 'cpu', or install a CUDA build of torch."
        )
    if resolved.type == "cuda" and _lost_gpu_by_fork():
        raise ValueError(
            f"device={device!r} cannot be used in this process: {_FORK_REMEDY}, or device='cpu'."
        )
    if resolved.type == "cuda" and resolved.index is None:
        resolved = torch.device("cuda", torch.cuda.current_device() or _own_gpu())  # one name for one device
    if is_auto and resolved.type == "cuda" and not _has_kernels_for(resolved):
        warn(
            f"device='auto' is the CPU: torch {torch.__version__} has no kernels for the GPU "
            f"{torch.cuda.get_device_name(resolved)}. Install a build of torch that has them, name another GPU "
            "(device='cuda:N') if there is one, or set device='cpu' if this is what you want."
        )
        return torch.device("cpu")
    return resolved


def _has_kernels_for(gpu: torch.device) -> bool:
    """Tell whether this torch was built for a GPU, where it tells for what it was built."""
    names = [name.partition("_") for name in torch.cuda.get_arch_list()]
    built = [(kind, int(number.rstrip("af"))) for kind, _, number in names if kind in ("sm", "compute")]
    if not built:  # for AMD's, or for none
        return True
    major, minor = torch.cuda.get_device_capability(gpu)
    own = 10 * major + minor
    # Machine code runs on its generation, from its own version on; "compute" is translated for any later GPU.
    return any(number <= own and (kind == "compute" or number // 10 == major) for kind, number in built)


def _own_gpu() -> int:
    """Return the number of the GPU of this process where nobody has chosen one.

    Of several processes (``torchrun``, ``accelerate launch``) each has its own, counted as accelerate does. A
    thread does not know what the main one has chosen.
    """
    if is_alone():
        return 0
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()


def is_alone() -> bool:
    """Tell whether this is none of several processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2


_FORK_REMEDY = (
    "it was forked from one that had used CUDA, which does not survive that. Use processes that start anew "
    "(joblib's 'loky', its default, or the start method 'spawn' of multiprocessing), or threads (joblib's "
    "'threading')"
)


def _lost_gpu_by_fork() -> bool:
    """Tell whether this process cannot use the GPUs of the machine, because its parent did."""
    # Private, but what torch itself asks before it uses a GPU.
    in_bad_fork = getattr(torch.cuda, "_is_in_bad_fork", bool)()
    return in_bad_fork and torch.cuda.device_count() > 0


def _other_gpus(device: torch.device) -> tuple[torch.device, ...]:
    """Return the other GPUs of the same model, which are worth as much of the work.

    Of several processes that share the GPUs (``torchrun``, ``accelerate launch``) each keeps to its own.
    """
    if device.type != "cuda" or not is_alone():
        return ()
    name = torch.cuda.get_device_name(device)
    others = (torch.device("cuda", i) for i in range(torch.cuda.device_count()) if i != device.index)
    return tuple(other for other in others if _is_named(other, name))


def _is_named(device: torch.device, name: str) -> bool:
    try:
        return torch.cuda.get_device_name(device) == name
    except (AssertionError, RuntimeError):
        return False  # it is broken, or with MIG on the driver counts it and CUDA does not


def _best_precision(device: torch.device, backend: str, config: BertConfig | None) -> str:
    """Return bfloat16 where the hardware multiplies it natively, float16 on older GPUs, else what a CPU does best."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp16"
    if cpu_has_bf16():
        return "bf16"
    if backend != "torch" or config is None or not layers.is_available(torch.int16):
        return "fp32"
    return "int16" if layers.takes_sizes(config.hidden_size, config.intermediate_size) else "fp32"


def compiled_kernels() -> str | None:
    """Return in words which compiled kernels there are for this processor; None where there are none."""
    if _library.load() is None:
        return None
    precisions = [name for name, dtype in _DTYPES.items() if layers.is_available(dtype)]
    return f"for {_library.instructions()}" + (f", layers in {', '.join(precisions)}" if precisions else "")


def cpu_has_bf16() -> bool:
    """Tell whether the processor has bfloat16 instructions (AVX-512 BF16 or AMX)."""
    return _cpu_has("_is_amx_tile_supported") or _cpu_has("_is_avx512_bf16_supported")


def _is_x86() -> bool:
    """Tell whether what torch says of bfloat16 is about this kind of processor."""
    return platform.machine() in ("x86_64", "AMD64")


def _cpu_has(check: str) -> bool:
    # Private, but the only place where torch tells; absent on some builds, where the plain way is right.
    return getattr(torch.cpu, check, bool)()


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that a GPU's memory was too small.

    torch has an error of its own for what it reserves itself. cuBLAS, which
    each thread opens at its first product, and the driver take theirs beside
    it, and cannot have what torch keeps for later.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    messages = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)


def return_free_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim(0)
