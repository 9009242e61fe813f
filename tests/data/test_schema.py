import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from pymatgen.core import DummySpecies, Lattice, Structure
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from src.data.cif import read_cif
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch

FIELDS = ("atom_types", "frac_coords", "lattices", "num_atoms", "batch", "ptr")


def make_structures(num: int = 6, seed: int = 0) -> list[Structure]:
    """Structures in skewed, rotated and left-handed cells, with coordinates outside [0, 1)."""
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(num):
        n = int(rng.integers(1, 9))
        lattice = Lattice(rng.normal(scale=4, size=(3, 3)) + 3 * np.eye(3))
        structures.append(
            Structure(lattice, rng.integers(1, 100, n).tolist(), rng.uniform(-2, 3, (n, 3)))
        )
    return structures


@pytest.fixture
def structures() -> list[Structure]:
    return make_structures()


@pytest.fixture
def batch(structures) -> CrystalBatch:
    batch = CrystalBatch.from_structures(structures)
    batch.y = {"energy": torch.arange(6.0), "gap": torch.tensor([1.0, torch.nan, 3, 4, 5, 6])}
    return batch


def assert_same(a: CrystalBatch, b: CrystalBatch) -> None:
    for field in FIELDS:
        assert torch.equal(a[field], b[field]), field
        assert a[field].dtype == b[field].dtype, field
    assert (a.y is None) == (b.y is None)
    for name in a.y or {}:
        torch.testing.assert_close(a.y[name], b.y[name], rtol=0, atol=0, equal_nan=True)


def test_is_a_pyg_batch(batch, structures):
    assert isinstance(batch, CrystalBatch)
    assert isinstance(batch, Batch)
    assert len(batch) == batch.num_graphs == batch.batch_size == 6
    assert batch.num_nodes == sum(map(len, structures))


def test_fields(batch, structures):
    counts = [len(s) for s in structures]
    assert batch.num_atoms.tolist() == counts
    assert batch.max_num_atoms == max(counts)
    assert batch.ptr.tolist() == [0, *np.cumsum(counts)]
    assert batch.batch.tolist() == np.repeat(np.arange(6), counts).tolist()
    assert batch.token_idx.tolist() == [k for n in counts for k in range(n)]
    assert batch.atom_types.tolist() == [z for s in structures for z in s.atomic_numbers]
    assert [batch[field].dtype for field in FIELDS] == [
        torch.int64, torch.float32, torch.float32, torch.int64, torch.int64, torch.int64
    ]  # fmt: skip


def test_derived_fields_agree_with_pymatgen(batch, structures):
    parameters = np.array([s.lattice.parameters for s in structures])
    volume_per_atom = np.array([[1 / len(s)] for s in structures])
    np.testing.assert_allclose(batch.lengths, parameters[:, :3], rtol=1e-5)
    np.testing.assert_allclose(batch.angles, parameters[:, 3:], atol=1e-3)
    np.testing.assert_allclose(batch.angles_radians, np.radians(parameters[:, 3:]), atol=1e-5)
    scaled = parameters[:, :3] * volume_per_atom ** (1 / 3)
    np.testing.assert_allclose(batch.lengths_scaled, scaled, rtol=1e-5)
    cart_coords = np.concatenate([s.cart_coords for s in structures])
    np.testing.assert_allclose(batch.cart_coords, cart_coords, atol=1e-4)


def test_conversion_to_structures_and_back_is_exact_in_float32(batch, structures):
    assert any(s.lattice.matrix[0] @ np.cross(*s.lattice.matrix[1:]) < 0 for s in structures)
    for before, after in zip(structures, batch.to_structure(), strict=True):
        assert after.atomic_numbers == before.atomic_numbers
        assert (after.frac_coords == before.frac_coords.astype(np.float32)).all()
        assert (after.lattice.matrix == before.lattice.matrix.astype(np.float32)).all()
    again = CrystalBatch.from_structures(batch.to_structure())
    again.y = batch.y
    assert_same(again, batch)


def test_conversion_of_real_structures_and_back(shared_data):
    texts = pd.read_csv(shared_data / "mp_20" / "test.csv.gz", nrows=50)["cif"]
    crystals = [read_cif(text) for text in texts]
    structures = [Structure(c.lattice, c.atom_types.tolist(), c.frac_coords) for c in crystals]
    batch = CrystalBatch.from_structures(structures)
    for before, after in zip(structures, batch.to_structure(), strict=True):
        assert after.composition == before.composition
        np.testing.assert_allclose(after.distance_matrix, before.distance_matrix, atol=1e-4)


def test_oxidation_states_are_dropped():
    structure = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0.0, 0, 0], [0.5, 0.5, 0.5]])
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    batch = CrystalBatch.from_structures([structure])
    assert batch.atom_types.tolist() == [11, 17]
    assert batch.to_structure()[0].formula == "Na1 Cl1"


def test_conversion_to_ase_atoms_and_back(batch, structures):
    atoms = batch.to_atoms()
    for a, s in zip(atoms, structures, strict=True):
        assert a.pbc.all()
        assert a.numbers.tolist() == list(s.atomic_numbers)
        np.testing.assert_allclose(a.positions, s.cart_coords, atol=1e-4)
        np.testing.assert_allclose(a.cell.cellpar(), s.lattice.parameters, rtol=1e-5)
    again = CrystalBatch.from_atoms(atoms)
    torch.testing.assert_close(again.frac_coords, batch.frac_coords, rtol=0, atol=1e-5)
    assert torch.equal(again.lattices, batch.lattices)
    assert torch.equal(again.atom_types, batch.atom_types)


def test_conversion_to_a_data_list_and_back(batch):
    crystals = batch.to_data_list()
    assert all(type(c) is Data for c in crystals)
    again = CrystalBatch.from_data_list(crystals)
    assert isinstance(again, CrystalBatch)
    assert_same(again, batch)
    assert again.max_num_atoms == batch.max_num_atoms
    assert torch.equal(again.angles, batch.angles)
    assert_same(again.replace(), batch)


def test_indexing(batch):
    whole = batch.to_data_list()
    for picked, expected in [
        (batch[2:5], [2, 3, 4]),
        (batch[::-2], [5, 3, 1]),
        (batch[[4, 0, 4]], [4, 0, 4]),
        (batch[torch.tensor([1, 3])], [1, 3]),
        (batch[torch.tensor([True, False, False, False, False, True])], [0, 5]),
    ]:
        wanted = CrystalBatch.from_data_list([whole[i] for i in expected])
        assert_same(CrystalBatch.from_data_list(picked), wanted)
    last = batch[-1]
    assert torch.equal(last.atom_types, batch.atom_types[batch.batch == 5])
    assert torch.equal(last.frac_coords, batch.frac_coords[batch.batch == 5])
    assert last.y["energy"].tolist() == [5]
    assert last.num_nodes == last.num_atoms.item()
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"no crystal {index} in a batch of 6"):
            batch[index]


def test_pygs_loader_collates_crystals(batch):
    dataset = CrystalDataset.from_batch(batch)
    loader = DataLoader(dataset, batch_size=4)
    crystals = [crystal for b in loader for crystal in b.to_data_list()]
    assert [b.num_graphs for b in loader] == [4, 2]
    assert_same(CrystalBatch.from_data_list(crystals), batch)


def test_pickle_and_clone(batch):
    for copy in (pickle.loads(pickle.dumps(batch)), batch.clone()):
        assert isinstance(copy, CrystalBatch)
        assert_same(copy, batch)
        assert copy.max_num_atoms == batch.max_num_atoms
        assert copy.frac_coords.data_ptr() != batch.frac_coords.data_ptr()


def test_to_another_device(batch):
    moved = batch.clone().to("meta")  # PyG's `to` works in place
    assert isinstance(moved, CrystalBatch)
    assert all(moved[field].is_meta for field in FIELDS)
    assert moved.y["energy"].is_meta
    assert moved.lengths.is_meta
    assert moved.max_num_atoms == batch.max_num_atoms  # known without synchronization
    assert moved.replace(frac_coords=moved.frac_coords + 1).max_num_atoms == batch.max_num_atoms


def test_replace_does_not_modify_the_original(batch):
    before = batch.clone()
    atom_types = torch.ones_like(batch.atom_types)
    changed = batch.replace(
        atom_types=atom_types, frac_coords=batch.frac_coords + 1, lattices=batch.lattices * 2
    )
    assert_same(batch, before)
    assert isinstance(changed, CrystalBatch)
    assert changed.atom_types is atom_types
    torch.testing.assert_close(changed.lengths, 2 * batch.lengths)
    assert torch.equal(changed.ptr, batch.ptr)
    assert torch.equal(changed.y["energy"], batch.y["energy"])
    changed.y["new"] = torch.zeros(6)
    assert "new" not in batch.y


def test_y_is_none_without_properties(structures):
    assert CrystalBatch.from_structures(structures).y is None


def test_for_sampling():
    num_atoms = torch.tensor([3, 1, 2])
    batch = CrystalBatch.for_sampling(num_atoms)
    assert batch.atom_types.tolist() == [0] * 6
    assert batch.token_idx.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.max_num_atoms == 3
    given = CrystalBatch.for_sampling(num_atoms, torch.tensor([6, 7, 8, 1, 2, 3]))
    assert given.to_data_list()[2].atom_types.tolist() == [2, 3]
    with pytest.raises(ValueError, match="require frac_coords"):
        CrystalBatch.for_sampling(num_atoms, torch.tensor([6, 7]))


def test_partial_occupancy_is_refused():
    ordered = Structure(Lattice.cubic(4), ["Fe"], [[0, 0, 0]])
    mixed = Structure(Lattice.cubic(4), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structure 1 \(Fe0.5 Ni0.5\) has partial occupancies"):
        CrystalBatch.from_structures([ordered, mixed])


@pytest.mark.parametrize("symbol", ["X", "Xa", "Qa"])
def test_dummy_species_are_refused(symbol):
    dummy = Structure(Lattice.cubic(4), [DummySpecies(symbol), "O"], [[0.0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"structure 0 .* has a site without an element"):
        CrystalBatch.from_structures([dummy])
    with pytest.raises(ValueError, match=r"atoms 0 .* include an atom without an element"):
        CrystalBatch.from_atoms([Atoms("XO", cell=[4, 4, 4], pbc=True)])


def test_atoms_without_cell_are_refused():
    solid = Atoms("H", cell=[4, 4, 4], pbc=True)
    for cell in (None, [4, 4, 0]):
        with pytest.raises(ValueError, match=r"atoms 1 \(H2\) have no 3D cell"):
            CrystalBatch.from_atoms([solid, Atoms("H2", cell=cell)])


def test_masked_atoms_cannot_be_converted(batch):
    masked = batch.replace(atom_types=batch.atom_types * 0)
    for convert in (masked.to_structure, masked.to_atoms):
        with pytest.raises(ValueError, match="mask token"):
            convert()


def test_empty_batches_and_crystals_are_refused():
    for make in (CrystalBatch.from_structures, CrystalBatch.from_atoms):
        with pytest.raises(ValueError, match="batch of no crystals"):
            make([])
    with pytest.raises(ValueError, match="crystal 0 has no atoms"):
        CrystalBatch.from_structures([Structure(Lattice.cubic(4), [], [])])
    with pytest.raises(ValueError, match="crystal 0 has no atoms"):
        CrystalBatch.from_atoms([Atoms(cell=[4, 4, 4], pbc=True)])


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("frac_coords", (2, 3), r"not \(2, 3\)"),
        ("frac_coords", (3, 2), r"not \(3, 2\)"),
        ("lattices", (3, 3), r"and \(3, 3\)"),
        ("lattices", (2, 3, 3), r"and \(2, 3, 3\)"),
        ("y", (3,), r"y\['gap'\] must have shape \(1,\), not \(3,\)"),
    ],
)
def test_inconsistent_shapes_are_refused(field, shape, message):
    tensors: dict[str, Any] = {
        "atom_types": torch.ones(3, dtype=torch.int64),
        "frac_coords": torch.zeros(3, 3),
        "lattices": torch.eye(3)[None],
        "num_atoms": torch.tensor([3]),
    }
    CrystalBatch.from_tensors(**tensors)
    wrong = torch.zeros(shape)
    tensors[field] = {"gap": wrong} if field == "y" else wrong
    with pytest.raises(ValueError, match=message):
        CrystalBatch.from_tensors(**tensors)
