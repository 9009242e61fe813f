"""A small VAE, a small prior over its latents, and a few crystals."""

import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch
from src.ldm_module import LDMModule
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
DENOISER = {"_target_": "src.ldm_module.denoisers.dit.DiT", **SIZES, "max_num_elements": 60}
CONDITIONS = {
    "_target_": "src.ldm_module.conditions.Conditions",
    "properties": ["density", "gap"],
    "chemical_system": True,
    "max_num_elements": 60,
}
COMPOSITIONS = {
    "_target_": "src.ldm_module.compositions.CompositionModel", **SIZES, "max_num_atoms": 12,
}  # fmt: skip
TRAINING_SET = {"num_crystals": 4, "num_atoms": {"2": 3, "6": 1}, "elements": {"8": 12}}


def make_ldm(atom_type_predict: bool = True, **arguments) -> LDMModule:
    """With random weights everywhere, also where a new denoiser has zeros."""
    torch.manual_seed(0)
    vae = VAEModule(
        TransformerEncoder(**SIZES, max_num_elements=60),
        TransformerDecoder(**SIZES, max_num_elements=60, atom_type_predict=atom_type_predict),
        latent_dim=4,
    )
    vae.training_set = TRAINING_SET
    ldm = LDMModule(vae, DENOISER, **{"conditions": CONDITIONS, **arguments})
    with torch.no_grad():
        for parameter in ldm.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ldm.latent_mean.copy_(torch.tensor([1.0, 0.0, -1.0, 0.0]))
    ldm.latent_std.copy_(torch.tensor([2.0, 1.0, 0.5, 1.0]))
    return ldm.eval()


@pytest.fixture
def batch() -> CrystalBatch:
    generator = torch.Generator().manual_seed(1)
    structures = []
    for n in (1, 4, 9):
        lattice = Lattice.from_parameters(3 + n / 3, 4.1, 5.2, 80, 95, 110)
        coords = torch.rand(n, 3, generator=generator).numpy()
        structures.append(Structure(lattice, (["O", "Ti", "Sr"] * 3)[:n], coords))
    batch = CrystalBatch.from_structures(structures)
    batch.y = {"gap": torch.tensor([1.0, torch.nan, 3.0])}
    return batch
