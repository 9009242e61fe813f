"""Which precision suits the hardware."""

import pytest
import torch

from src.utils import precision as precision_module
from src.utils.precision import half_precision, native_precision


def cpu_precision() -> str:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_tile"])
def test_either_cpu_feature_is_enough(monkeypatch, feature):
    monkeypatch.setattr(precision_module, "_cpu_has", lambda name: name == feature)
    assert native_precision("cpu") == "bf16-mixed"


def test_a_cpu_without_them_or_a_torch_that_cannot_tell(monkeypatch):
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
    assert native_precision("cpu") == "32-true"


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "32-true"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")],
)
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_auto_follows_the_gpu(monkeypatch, accelerator, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert native_precision(accelerator) == precision
    assert native_precision("cpu") == cpu_precision()


def test_an_apple_gpu_gets_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(precision_module, "_cpu_has", lambda name: True)
    assert native_precision("mps") == native_precision("auto") == "32-true"


def test_matrices_are_multiplied_in_what_is_fast():
    one = torch.ones(2, 2)
    with half_precision(one.device):
        dtype = (one @ one).dtype
    assert dtype == (torch.bfloat16 if cpu_precision() == "bf16-mixed" else torch.float32)
    assert (one @ one).dtype == torch.float32
