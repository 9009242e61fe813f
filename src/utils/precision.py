"""Which precision a device computes fast in, and where networks need full precision."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> torch.autocast:
    """A context that disables autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def half_precision(device: torch.device) -> torch.autocast:
    """A context that multiplies matrices in bfloat16, if the device does so natively."""
    enabled = native_precision(device.type) == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def native_precision(accelerator: str = "auto") -> str:
    """`bf16-mixed` if the hardware multiplies bfloat16 natively, else `32-true`.

    It does on CUDA GPUs of compute capability 8.0 or higher, and CPUs with AVX512-BF16 or AMX.
    """
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        native = torch.cuda.get_device_capability() >= (8, 0)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.mps.is_available()):
        native = _cpu_has("avx512_bf16") or _cpu_has("amx_tile")
    else:
        native = False
    return "bf16-mixed" if native else "32-true"


def _cpu_has(feature: str) -> bool:
    query = getattr(torch.cpu, f"_is_{feature}_supported", None)  # not in all torch versions
    return bool(query and query())
