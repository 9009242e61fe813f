"""`VAEModule.featurize`."""

import numpy as np
import pytest
import torch
from ase import Atoms
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16, "dropout": 0.5}


@pytest.fixture(scope="module")
def vae() -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES), latent_dim=5)


def make_structures(num: int = 7) -> list[Structure]:
    """Structure i has 1 + 2 i % 5 atoms."""
    rng = np.random.default_rng(0)
    return [
        Structure(
            Lattice.from_parameters(4 + i / 3, 5, 6, 80, 95, 110),
            rng.integers(1, 90, 1 + 2 * i % 5),
            rng.random((1 + 2 * i % 5, 3)),
        )
        for i in range(num)
    ]


def test_shapes_and_order(vae):
    structures = make_structures()
    features = vae.featurize(structures, batch_size=3)
    assert [tuple(x.shape) for x in features.per_atom] == [(len(s), 5) for s in structures]
    assert features.pooled.shape == (7, 5)
    assert features.pooled.device.type == "cpu"
    for per_atom, pooled in zip(features.per_atom, features.pooled, strict=True):
        torch.testing.assert_close(per_atom.mean(0), pooled)


def test_they_are_the_posteriors_means(vae):
    structures = make_structures()
    vae.eval()
    batch = CrystalBatch.from_structures(structures)
    expected = vae.encode(batch)["posterior"].mean
    found = torch.cat(vae.featurize(structures).per_atom)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("batch_size", [1, 2, 7, 256])
def test_the_batch_size_does_not_matter(vae, batch_size):
    structures = make_structures()
    expected = vae.featurize(structures, batch_size=4)
    found = vae.featurize(structures, batch_size=batch_size)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)


def test_ase_gives_the_same(vae):
    structures = make_structures()
    atoms = [Atoms(s.atomic_numbers, s.cart_coords, cell=s.lattice.matrix) for s in structures]
    torch.testing.assert_close(
        vae.featurize(atoms).pooled, vae.featurize(structures).pooled, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(vae, training):
    """Dropout of one half would show."""
    structures = make_structures()
    vae.train(training)
    first, second = vae.featurize(structures).pooled, vae.featurize(structures).pooled
    assert torch.equal(first, second)
    assert vae.training is training
    with pytest.raises(ValueError, match="no crystals"):
        vae.featurize([])
    assert vae.training is training


def test_cells_are_taken_as_they_stand(vae):
    structures = make_structures()
    other = [s.copy().make_supercell([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) for s in structures]
    change = vae.featurize(other).pooled - vae.featurize(structures).pooled
    assert change.abs().max() > 1e-3


def test_what_cannot_be_featurized_is_named_by_its_index(vae):
    good = make_structures()
    cubic = Lattice.cubic(4)
    fermium = Structure(cubic, ["O", "Fm"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"structure 7 has Fm \(atomic number 100\).* 1 to 99"):
        vae.featurize([*good, fermium], batch_size=2)
    partial = Structure(cubic, [{"O": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structure 7 .*partial occupancies"):
        vae.featurize([*good, partial])
    with pytest.raises(ValueError, match="structure 1 is a Atoms"):
        vae.featurize([good[0], Atoms("O", cell=[4, 4, 4])])
    with pytest.raises(ValueError, match="structure 0 is a str"):
        vae.featurize(["NaCl.cif"])
    with pytest.raises(ValueError, match=r"atoms 1 .*no 3D cell"):
        vae.featurize([Atoms("O", cell=[4, 4, 4]), Atoms("O2")])
