"""Models and training steps for the benchmarks, packed and stock."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.loader import DataLoader

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.nn.transformer import Packing
from src.utils.muon import Muon
from src.utils.precision import native_precision
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.losses import vae_loss

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "nhead": 4, "num_layers": 4, "dim_feedforward": 512},
    "small": {"d_model": 256, "nhead": 8, "num_layers": 4, "dim_feedforward": 1024},
    # as in configs/size/small.yaml, whose encoder has a single layer
    "one-core": {
        "d_model": 128,
        "nhead": 4,
        "num_layers": 4,
        "dim_feedforward": 512,
        "encoder_layers": 1,
    },
    "mp20": {"d_model": 512, "nhead": 8, "num_layers": 8, "dim_feedforward": 2048},
}

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-4, "fused": True}


class StockTransformer(nn.Module):
    """`torch.nn.TransformerEncoder` on padded batches, as in Chemeleon2."""

    def __init__(self, d_model: int, nhead: int, num_layers: int, dim_feedforward: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, num_layers, nn.LayerNorm(d_model), enable_nested_tensor=False
        )

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        padding = ~packing.mask[:, 0, 0, :]
        return packing.unpad(self.encoder(packing.pad(x), src_key_padding_mask=padding))


def make_vae(sizes: dict[str, Any], stock: bool = False) -> VAEModule:
    """A VAE of the given sizes with the packed or the stock Transformer, configured for AdamW."""
    torch.manual_seed(0)
    of_decoder = {name: size for name, size in sizes.items() if name != "encoder_layers"}
    of_encoder = {**of_decoder, "num_layers": sizes.get("encoder_layers", sizes["num_layers"])}
    plain: dict[str, Any] = {"activation": "gelu"}  # the stock layers have no gated activation
    vae = VAEModule(
        TransformerEncoder(**of_encoder, **plain),
        TransformerDecoder(**of_decoder, **plain),
        latent_dim=8,
        optimizer=ADAMW,
    )
    if stock:
        vae.encoder.transformer = StockTransformer(**of_encoder)
        vae.decoder.transformer = StockTransformer(**of_decoder)
    return vae


def collated_batches(dataset: CrystalDataset, batch_size: int) -> Iterator[CrystalBatch]:
    """Endless batches of objects collated by PyG, as in Chemeleon2."""
    loader = DataLoader([dataset[i] for i in range(len(dataset))], batch_size, shuffle=True)
    while True:
        for batch in loader:
            yield CrystalBatch.from_tensors(
                batch.atom_types, batch.frac_coords, batch.lattices, batch.num_atoms
            )


def indexed_batches(dataset: CrystalDataset, batch_size: int) -> Iterator[CrystalBatch]:
    """Endless batches in random order, made by indexing flat tensors."""
    while True:
        for indices in torch.randperm(len(dataset)).split(batch_size):
            yield dataset.batch(indices)


def make_step(
    vae: VAEModule, bf16: bool, fused: bool, muon: bool = False
) -> Callable[[CrystalBatch], None]:
    """A plain PyTorch training step: forward, loss, backward, clip, AdamW or Muon."""
    optimizer: torch.optim.Optimizer = (
        Muon(vae.named_parameters(), lr=1e-4)
        if muon
        else torch.optim.AdamW(vae.parameters(), lr=1e-4, fused=fused)
    )
    device_type = next(vae.parameters()).device.type

    def step(batch: CrystalBatch) -> None:
        with torch.autocast(device_type, torch.bfloat16, enabled=bf16):
            encoded = vae.encode(batch)
            posterior = encoded["posterior"]
            prediction = vae._predict({**encoded, "x": posterior.sample()})
            loss, _ = vae_loss(prediction, posterior, batch, vae.loss_weights)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    return step


def model_flops(vae: VAEModule, num_atoms: Tensor) -> float:
    """FLOPs of one training step, without padding.

    Each matrix weight takes 6 FLOPs per atom (2 forward, 4 backward). The matrices of the lattice
    work per crystal but are counted per atom, which adds 0.1 %. The attention scores and values of
    each layer take 12 d_model FLOPs per pair of atoms in a crystal.
    """
    matrices = sum(p.numel() for p in vae.parameters() if p.dim() == 2)
    tables = sum(m.weight.numel() for m in vae.modules() if isinstance(m, nn.Embedding))
    attention = sum(12 * net.d_model * net.num_layers for net in (vae.encoder, vae.decoder))
    atoms, pairs = int(num_atoms.sum()), int((num_atoms.long() ** 2).sum())
    return 6.0 * (matrices - tables) * atoms + attention * pairs


def matmul_flops_per_second(dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """A variant that multiplies large matrices (4096 x 512 by 512 x 2048), in FLOPs."""
    scale = 8 if device.type == "cuda" else 1
    a = torch.randn(4096 * scale, 512 * scale, dtype=dtype, device=device)
    b = torch.randn(512 * scale, 2048 * scale, dtype=dtype, device=device)

    def multiply() -> float:
        for _ in range(20):
            a @ b
        return 20 * 2.0 * a.shape[0] * a.shape[1] * b.shape[1]

    return multiply


def has_native_bf16() -> bool:
    """Whether this machine multiplies bfloat16 natively."""
    return native_precision() == "bf16-mixed"
