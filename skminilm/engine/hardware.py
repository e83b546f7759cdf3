"""Which device and which precision to compute with."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """Return the device that `device` stands for: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    ValueError
        No such device, or it is not present here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not known: use 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not supported: use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not present: torch {torch.__version__} sees {torch.cuda.device_count()} "
            "CUDA device(s). Use device='auto' or 'cpu', or install a CUDA build of torch."
        )
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # one name for one device
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `precision` stands for on a device.

    ``"auto"`` is bfloat16 where the hardware multiplies it natively, float16
    on older GPUs, else float32.

    Raises
    ------
    ValueError
        Unknown precision, or float16 on a CPU.
    """
    if precision == "auto":
        if device.type == "cuda":
            with torch.cuda.device(device):
                native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision={precision!r} is not known: use 'auto', {', '.join(map(repr, PRECISIONS))}."
        )
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU: use 'auto', 'bf16' or 'fp32' on a CPU.")
    return PRECISIONS[precision]


def cpu_has_bf16() -> bool:
    """Tell whether the processor has bfloat16 instructions (AVX-512 BF16 or AMX)."""
    # Private, but the only place where torch tells; absent on some builds, where fp32 is right.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)
