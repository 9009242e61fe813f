"""A step of the small model casts and allocates no more often than it did when it was measured."""

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

from src.data.schema import CrystalBatch
from src.utils.muon import Muon
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.losses import vae_loss

# A tenth above what was counted with PyTorch 2.13. Columns: bfloat16, casts, allocations.
BOUNDS = [(True, 585, 825), (False, 395, 595)]
SIZES = {"d_model": 128, "nhead": 4, "dim_feedforward": 512}


@pytest.mark.parametrize(("is_half", "casts", "allocations"), BOUNDS)
def test_casts_and_allocations_of_a_step(is_half, casts, allocations, monkeypatch):
    monkeypatch.setattr("src.utils.muon.native_precision", lambda device: "bf16-mixed")
    vae = VAEModule(
        TransformerEncoder(num_layers=1, **SIZES), TransformerDecoder(num_layers=4, **SIZES)
    )
    optimizer = Muon(vae.named_parameters())
    num_atoms = torch.tensor([3, 7, 2])
    batch = CrystalBatch.from_tensors(
        torch.randint(1, 90, (12,)), torch.rand(12, 3), 4 * torch.eye(3).expand(3, 3, 3), num_atoms
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            encoded = vae.encode(batch)
            prediction = vae._predict({**encoded, "x": encoded["posterior"].sample()})
            loss, _ = vae_loss(prediction, encoded["posterior"], batch, vae.loss_weights)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first one creates the state of the optimizer
    with profile() as steps:
        step()
    counts = {event.key: event.count for event in steps.key_averages()}
    assert counts["aten::_to_copy"] <= casts
    assert counts["aten::empty"] + counts["aten::empty_strided"] <= allocations
