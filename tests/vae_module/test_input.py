"""`VAEModule.to_batch`: crystals in the cells that the model was trained on."""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch, DataModule
from src.data.cells import CELLS
from src.data.cif import Crystal, orient, write_cif
from src.data.parsing import ReadOptions
from src.data.structures import to_crystal, to_structure
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from tests.crystals import rock_salt

SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
ROCKSALT = rock_salt(5.6, "Na", "Cl")


def make_vae(cell: str | None = None) -> VAEModule:
    torch.manual_seed(0)
    vae = VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES), latent_dim=4)
    vae.read_options = None if cell is None else asdict(ReadOptions(cell))
    return vae.eval()


def make_structures(num: int = 12) -> list[Structure]:
    """Skewed cells; some are centered, left-handed or supercells of three cells."""
    rng = np.random.default_rng(0)
    structures = [ROCKSALT, ROCKSALT.get_primitive_structure(), ROCKSALT * (1, 1, 3)]
    for i in range(num - 3):
        lattice = np.diag([4.0, 5, 6]) + rng.uniform(-2, 2, (3, 3))
        lattice[0] *= (-1) ** i
        types = rng.integers(1, 90, 1 + i % 4)
        structures.append(Structure(Lattice(lattice), types, rng.random((len(types), 3))))
    return structures


def assert_same(found: CrystalBatch, expected: CrystalBatch) -> None:
    assert found.num_atoms.tolist() == expected.num_atoms.tolist()
    assert found.atom_types.tolist() == expected.atom_types.tolist()
    torch.testing.assert_close(found.lattices, expected.lattices, rtol=1e-5, atol=1e-5)
    offsets = found.frac_coords - expected.frac_coords
    assert (offsets - offsets.round()).abs().max() < 1e-5
    assert found.max_num_atoms == expected.max_num_atoms


@pytest.mark.parametrize("cell", CELLS)
def test_crystals_are_as_a_data_set_has_them(cell, tmp_path):
    structures = make_structures()
    crystals = [orient(to_crystal(structure)) for structure in structures]
    cifs = [write_cif(crystal, "x") for crystal in crystals]
    table = pd.DataFrame({"material_id": range(len(cifs)), "cif": cifs})
    table.to_csv(tmp_path / "train.csv", index=False)
    data = DataModule(
        tmp_path, cell=cell, max_rejected=None, min_distance=0, cache_dir=tmp_path / "cache"
    )
    expected = data.dataset("train").batch(torch.arange(len(structures)))
    assert_same(make_vae(cell).to_batch(structures), expected)
    assert_same(make_vae().to_batch(structures, cell=cell), expected)


def test_a_model_that_does_not_say_saw_niggli_cells():
    structures = make_structures()
    assert_same(make_vae().to_batch(structures), make_vae("niggli").to_batch(structures))


@pytest.mark.parametrize("cell", ["niggli", "primitive", "conventional"])
def test_one_crystal_has_one_latent_whatever_its_cell(cell):
    """In the kind of cell used in training; the basis of a cubic cell would not be unique."""
    rng = np.random.default_rng(1)
    vae = make_vae(cell)
    crystal = to_crystal(make_structures()[9])
    basis = np.array([[1, 2, 0], [0, 1, 0], [1, 0, 1]])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    coords = crystal.frac_coords @ np.linalg.inv(basis)
    other = to_structure(Crystal(basis @ crystal.lattice @ rotation, crystal.atom_types, coords))
    with torch.no_grad():
        one, two = (vae.encode(vae.to_batch([s]))["x"] for s in (to_structure(crystal), other))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
        stands = vae.encode(CrystalBatch.from_structures([other]))["x"]  # a batch as it is
    assert not torch.allclose(one, stands, atol=1e-2)


def test_ase_and_pymatgen_and_what_was_given_stays():
    structures = make_structures()
    atoms = [Atoms(s.atomic_numbers, s.cart_coords, cell=s.lattice.matrix) for s in structures]
    before = [s.copy() for s in structures], [a.copy() for a in atoms]
    assert_same(make_vae().to_batch(atoms), make_vae().to_batch(structures))
    assert (structures, atoms) == before
    assert not atoms[0].pbc.any()


def test_the_batch_is_where_the_model_is():
    assert make_vae().to("meta").to_batch([ROCKSALT]).frac_coords.device.type == "meta"


@pytest.mark.parametrize(
    ("trained", "asked", "level", "message"),
    [
        ("niggli", None, "INFO", "2 of 3 crystals were converted to their Niggli cells, as"),
        ("niggli", "niggli", "INFO", "2 of 3 crystals were converted to their Niggli cells, as"),
        ("primitive", None, "INFO", "3 of 3 crystals were converted to their primitive cells, as"),
        ("conventional", None, "INFO", "2 of 3 crystals were converted to their conventional"),
        ("as_given", None, "INFO", "3 crystals were kept in their given cells, as in tr"),
        (None, None, "INFO", "converted to their Niggli cells; the checkpoint does not record"),
        ("primitive", "niggli", "WARNING",
         "converted to their Niggli cells, but the model was trained on primitive cells"),
        ("niggli", "as_given", "WARNING",
         "3 crystals were kept in their given cells, but the model was trained on Niggli"),
    ],
)  # fmt: skip
def test_each_call_says_what_it_did(caplog, trained, asked, level, message):
    skewed = ROCKSALT.get_primitive_structure().make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    given = [ROCKSALT, skewed, ROCKSALT * (3, 1, 1)]
    with caplog.at_level(logging.INFO):
        make_vae(trained).to_batch(given, cell=asked)
    (record,) = caplog.records
    assert record.levelname == level
    assert message in record.getMessage()


def test_what_cannot_be_used_is_named_by_its_index():
    vae, cubic = make_vae(), Lattice.cubic(4)
    half = Structure(cubic, [{"O": 0.5}], [[0, 0, 0]])
    fermium = Structure(cubic, ["O", "Fm"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    twice = Structure(cubic, ["O", "O"], [[0, 0, 0], [0, 0, 0]])
    for bad, message in (
        (half, "structure 1: partial occupancies"),
        (fermium, "structure 1: Fm has atomic number 100: the model knows elements 1 to 99"),
        (Atoms("O", cell=[4, 4, 4]), "structure 1 is a Atoms"),
        (Structure(cubic, [], []), "structure 1: no atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.to_batch([ROCKSALT, bad])
    with pytest.raises(ValueError, match="structure 1: spglib finds no primitive cell"):
        vae.to_batch([ROCKSALT, twice], cell="primitive")
    with pytest.raises(ValueError, match="there are no crystals"):
        vae.to_batch([])
    with pytest.raises(ValueError, match=r"cell must be one of niggli, .*not 'smallest'"):
        vae.to_batch([ROCKSALT], cell="smallest")


def test_the_model_of_the_project_knows_its_cells():
    path = Path(__file__).resolve().parents[2] / "data" / "prototypes" / "vae.ckpt"
    vae = VAEModule.load_from_checkpoint(path)
    assert vae.read_options == asdict(ReadOptions("niggli", max_num_atoms=20))
