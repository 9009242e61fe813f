"""Optimizations change only the speed: results are compared with a simple implementation."""

from pathlib import Path

import pytest
import torch
from torch import nn

from src.data import CrystalBatch, DataModule
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.losses import vae_loss

PROTOTYPES = Path(__file__).resolve().parents[1] / "data" / "prototypes"
SIZES = {"d_model": 64, "nhead": 4, "num_layers": 2, "dim_feedforward": 128}
PLAIN = {**SIZES, "activation": "gelu"}  # the stock layers know no gate


class Stock(nn.Module):
    """`torch.nn.TransformerEncoder` on padded sequences."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)

    def forward(self, x, packing):
        out = self.encoder(packing.pad(x), src_key_padding_mask=~packing.mask[:, 0, 0])
        return packing.unpad(out)


def make_vae(stock: bool) -> VAEModule:
    torch.manual_seed(0)
    vae = VAEModule(TransformerEncoder(**PLAIN), TransformerDecoder(**PLAIN))
    for network in (vae.encoder, vae.decoder):
        oracle = Stock()
        oracle.encoder.load_state_dict(network.transformer.state_dict())
        if stock:
            network.transformer = oracle
    return vae


def losses(
    vae: VAEModule, batches: list[CrystalBatch], fused: bool, bf16: bool = False
) -> torch.Tensor:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, fused=fused)
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            encoded = vae.encode(batch)
            prediction = vae._predict({**encoded, "x": encoded["posterior"].sample(generator)})
            loss, _ = vae_loss(prediction, encoded["posterior"], batch, vae.loss_weights)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """20 batches of the included data, indexed from flat tensors and collated by PyG."""
    cache = tmp_path_factory.mktemp("cache")
    dataset = DataModule(PROTOTYPES, cache_dir=cache).dataset("val")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    parts = order[: 20 * 16].split(16)
    collated = [CrystalBatch.from_data_list([dataset[int(i)] for i in part]) for part in parts]
    return [dataset.batch(part) for part in parts], collated


def test_indexed_batches_are_collated_batches(batches):
    for indexed, collated in zip(*batches, strict=True):
        for key in ("atom_types", "frac_coords", "lattices", "num_atoms", "batch", "ptr"):
            assert torch.equal(indexed[key], collated[key]), key


def test_the_first_20_losses_are_those_of_the_simple_path(batches):
    indexed, collated = batches
    fast = losses(make_vae(stock=False), indexed, fused=True)
    simple = losses(make_vae(stock=True), collated, fused=False)
    assert len(fast) == 20
    assert fast[-1] < 0.8 * fast[0]  # it learns, so the steps matter
    torch.testing.assert_close(fast, simple, rtol=1e-3, atol=1e-3)


def test_bfloat16_follows_float32(batches):
    indexed, _ = batches
    reference = losses(make_vae(stock=False), indexed, fused=True)
    half = losses(make_vae(stock=False), indexed, fused=True, bf16=True)
    torch.testing.assert_close(half, reference, rtol=0.02, atol=0)
