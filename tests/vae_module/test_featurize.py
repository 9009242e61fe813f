"""`VAEModule.featurize`."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch
from src.data.cell_change import change_cell
from src.data.cells import CELLS
from src.data.parsing import ReadOptions
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from tests.crystals import rock_salt

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
    expected = vae.encode(vae.to_batch(structures))["posterior"].mean
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
    """A dropout of one half would be noticed."""
    structures = make_structures()
    vae.train(training)
    first, second = vae.featurize(structures).pooled, vae.featurize(structures).pooled
    assert torch.equal(first, second)
    assert vae.training is training
    with pytest.raises(ValueError, match="no crystals"):
        vae.featurize([])
    assert vae.training is training


def rewritten(structures: list[Structure]) -> list[Structure]:
    """In another basis of the same lattice."""
    return [s.copy().make_supercell([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) for s in structures]


@pytest.mark.parametrize("trained", [None, *CELLS])
def test_cells_are_those_of_training(vae, monkeypatch, trained):
    """Niggli cells, for a checkpoint that does not record them."""
    if trained is not None:
        monkeypatch.setattr(vae, "read_options", asdict(ReadOptions(trained)))
    structures = make_structures()
    found, other = vae.featurize(structures), vae.featurize(rewritten(structures))
    for i, (one, two) in enumerate(zip(found.per_atom, other.per_atom, strict=True)):
        same = torch.allclose(one, two, rtol=1e-3, atol=1e-4)
        assert same is (trained != "as_given"), i
    batch = vae.to_batch(structures, cell=trained or "niggli")
    with torch.no_grad():
        means = vae.eval().encode(batch)["posterior"].mean.split(batch.num_atoms.tolist())
    for pooled, mean in zip(found.pooled, means, strict=True):
        torch.testing.assert_close(pooled, mean.mean(0), rtol=1e-4, atol=1e-5)


def test_another_cell_than_that_of_training(vae):
    structures = make_structures()
    given = vae.featurize(structures, cell="as_given")
    batch = CrystalBatch.from_structures(structures)
    with torch.no_grad():
        expected = vae.eval().encode(batch)["posterior"].mean
    torch.testing.assert_close(torch.cat(given.per_atom), expected, rtol=1e-4, atol=1e-5)
    change = vae.featurize(rewritten(structures), cell="as_given").pooled - given.pooled
    assert change.abs().max() > 1e-3


def test_each_given_atom_has_the_latent_of_the_atom_at_its_place(vae):
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.95), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    order = [4, 0, 3, 5, 1, 2]
    shuffled = Structure.from_sites([rutile[i] for i in order])
    for cell in ("niggli", "primitive", "conventional"):
        one, other = (vae.featurize([s], cell=cell).per_atom[0] for s in (rutile, shuffled))
        torch.testing.assert_close(other, one[order], rtol=1e-4, atol=1e-5)
        assert len({tuple(row) for row in one.round(decimals=3).tolist()}) == 6
    # in a smaller cell the copies of an atom are one
    double = rutile * (1, 1, 2)
    primitive = vae.featurize([double], cell="primitive")
    assert primitive.per_atom[0].shape == (12, 5)
    for element in ("Ti", "O"):
        rows = primitive.per_atom[0][
            [i for i, s in enumerate(double) if s.species_string == element]
        ]
        counts = torch.unique(rows.round(decimals=4), dim=0, return_counts=True)[1]
        assert counts.tolist() == [2] * {"Ti": 2, "O": 4}[element]
    torch.testing.assert_close(primitive.per_atom[0].mean(0), primitive.pooled[0])
    # in a larger cell the given atoms are some of all
    rocksalt = rock_salt(5.6, "Na", "Cl")
    small = rocksalt.get_primitive_structure()
    found = vae.featurize([small, rocksalt], cell="conventional")
    assert [len(rows) for rows in found.per_atom] == [2, 8]
    torch.testing.assert_close(found.pooled[0], found.pooled[1], rtol=1e-4, atol=1e-5)


def test_atoms_that_cannot_be_assigned_are_an_error(vae, monkeypatch):
    def unassigned(crystal, cell):
        return replace(change_cell(crystal, cell), atoms=None)

    monkeypatch.setattr("src.vae_module.input.change_cell", unassigned)
    with pytest.raises(ValueError, match="structure 0: the atoms of its primitive cell cannot be"):
        vae.featurize(make_structures(), cell="primitive")


def test_what_cannot_be_featurized_is_named_by_its_index(vae):
    good = make_structures()
    cubic = Lattice.cubic(4)
    fermium = Structure(cubic, ["O", "Fm"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"structure 7: Fm has atomic number 100.* 1 to 99"):
        vae.featurize([*good, fermium], batch_size=2)
    partial = Structure(cubic, [{"O": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match="structure 7: partial occupancies"):
        vae.featurize([*good, partial])
    with pytest.raises(ValueError, match="structure 1 is a Atoms"):
        vae.featurize([good[0], Atoms("O", cell=[4, 4, 4])])
    with pytest.raises(ValueError, match="structure 0 is a str"):
        vae.featurize(["NaCl.cif"])
    with pytest.raises(ValueError, match="structure 1: not periodic in three dimensions"):
        vae.featurize([Atoms("O", cell=[4, 4, 4]), Atoms("O2")])
