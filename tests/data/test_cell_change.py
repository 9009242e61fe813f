"""Convert a crystal to a chosen cell, and back to the given cell and order of atoms."""

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

import src.data.cell_change
from src.data.cell_change import change_cell
from src.data.cells import CELLS, SYMPREC, choose_cell, standard_cell
from src.data.cif import Crystal, CrystalError, read_cif
from src.data.structures import to_crystal
from tests.crystals import rock_salt

CUBIC = rock_salt(5.6, "Na", "Cl")
CORUNDUM = Structure.from_spacegroup(
    "R-3c", Lattice.hexagonal(4.76, 12.99), ["Al", "O"], [[0, 0, 0.352], [0.306, 0, 0.25]]
)
QUARTZ = Structure.from_spacegroup(
    "P3_221", Lattice.hexagonal(4.91, 5.4), ["Si", "O"], [[0.47, 0, 2 / 3], [0.413, 0.267, 0.786]]
)
TRICLINIC = Structure(
    Lattice.from_parameters(4, 5, 6, 80, 95, 110), ["Ti", "O", "O"],
    np.random.default_rng(0).random((3, 3)),
)  # fmt: skip


def rewrite(crystal: Crystal, rng: np.random.Generator, times: int = 1) -> Crystal:
    """The same crystal with another basis, origin, orientation, order and number of cells."""
    basis = np.eye(3)
    for _ in range(4):
        shear = np.eye(3)
        shear[tuple(rng.permutation(3)[:2])] = rng.integers(-1, 2)
        basis = shear @ basis
    if rng.random() < 0.5:
        basis = basis[[1, 0, 2]]  # left-handed
    axis = np.eye(3)[rng.integers(3)]
    supercell = (1 + (times - 1) * axis)[:, None] * basis
    frac_coords = (crystal.frac_coords + rng.random(3)) @ np.linalg.inv(basis)
    copies = [frac_coords + axis * i for i in range(times)]
    frac_coords = np.concatenate(copies) / (1 + (times - 1) * axis)
    order = rng.permutation(len(frac_coords))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return Crystal(
        supercell @ crystal.lattice @ rotation,
        np.tile(crystal.atom_types, times)[order],
        frac_coords[order] % 1.0 % 1.0,
    )


def distance(one: Crystal, other: Crystal) -> float:
    """The largest distance in Å between atom i of one crystal and atom i of the other."""
    assert one.atom_types.tolist() == other.atom_types.tolist()
    np.testing.assert_allclose(one.lattice, other.lattice, atol=1e-5)
    offsets = one.frac_coords - other.frac_coords
    return float(np.linalg.norm((offsets - np.rint(offsets)) @ one.lattice, axis=1).max())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("structure", [CUBIC, CORUNDUM, QUARTZ, TRICLINIC], ids=lambda s: s.formula)
def test_there_and_back(structure, cell):
    rng = np.random.default_rng(1)
    for start in (structure, structure.get_primitive_structure()):
        crystal = to_crystal(start)
        for given in (crystal, *(rewrite(crystal, rng, times) for times in (1, 1, 2, 3))):
            change = change_cell(given, cell)
            expected = choose_cell(given, cell)
            assert distance(change.chosen, expected) < 1e-9
            assert change.chosen.num_atoms == expected.num_atoms
            assert distance(change.undo(change.chosen), given) < 1e-5
            # with the origin as given
            positions = change.chosen.frac_coords[change.atoms] + change.translations
            np.testing.assert_allclose(given.frac_coords @ change.basis, positions, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["mp_20", "mpts_52", "carbon_24", "perov_5"])
def test_real_crystals(shared_data, name, cell):
    rng = np.random.default_rng(2)
    for text in pd.read_csv(shared_data / name / "val.csv.gz", nrows=40)["cif"]:
        crystal = read_cif(text, niggli=False)
        for given in (crystal, rewrite(crystal, rng, int(rng.integers(1, 3)))):
            change = change_cell(given, cell)
            back = change.undo(change.chosen)
            # atoms that are equivalent within SYMPREC alone are one atom in a smaller cell
            positions = change.chosen.frac_coords[change.atoms] + change.translations
            spread = (given.frac_coords @ change.basis - positions) @ change.chosen.lattice
            is_merged = np.abs(spread).max() > 1e-6
            assert distance(back, given) < (SYMPREC if is_merged else 1e-5)
            assert not (is_merged and cell in ("niggli", "as_given"))


def test_what_changes_a_cell():
    crystal = to_crystal(TRICLINIC.get_reduced_structure("niggli"))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for same in (
        crystal,
        Crystal(crystal.lattice @ rotation, crystal.atom_types, crystal.frac_coords),
        Crystal(-crystal.lattice, crystal.atom_types, -crystal.frac_coords % 1.0),
    ):
        assert not change_cell(same, "niggli").is_changed
        assert not change_cell(same, "as_given").is_changed
    halfway = np.diag([1.0, -1.0, -1.0])
    other = Crystal(
        halfway @ crystal.lattice, crystal.atom_types, crystal.frac_coords @ halfway % 1
    )
    assert change_cell(other, "niggli").is_changed
    for cell in ("niggli", "conventional"):
        assert change_cell(to_crystal(CUBIC), cell).is_changed is False
    assert change_cell(to_crystal(CUBIC), "primitive").is_changed


def test_an_atom_of_a_smaller_cell_stands_for_all_its_copies():
    given = rewrite(to_crystal(CUBIC), np.random.default_rng(3), times=2)
    change = change_cell(given, "primitive")
    assert change.chosen.num_atoms == 2
    # the sodium atom becomes potassium and crosses a face of the cell
    sodium = int(np.flatnonzero(change.chosen.atom_types == 11)[0])
    shift = np.array([-0.03, 0.02, -0.01])
    moved = change.chosen.frac_coords.copy()
    moved[sodium] += shift
    types = np.where(change.chosen.atom_types == 11, 19, 17)
    back = change.undo(Crystal(change.chosen.lattice, types, moved % 1.0))
    is_metal = given.atom_types == 11
    assert back.atom_types.tolist() == np.where(is_metal, 19, 17).tolist()
    offsets = back.frac_coords - given.frac_coords
    offsets -= np.rint(offsets)
    expected = np.where(is_metal[:, None], shift @ np.linalg.inv(change.basis), 0)
    np.testing.assert_allclose(offsets, expected, atol=1e-9)


def test_a_larger_cell_gives_the_atoms_that_were_given():
    given = to_crystal(CUBIC.get_primitive_structure())
    change = change_cell(given, "conventional")
    assert (given.num_atoms, change.chosen.num_atoms) == (2, 8)
    scaled = Crystal(
        1.1 * change.chosen.lattice, change.chosen.atom_types, change.chosen.frac_coords
    )
    back = change.undo(scaled)
    assert distance(Crystal(back.lattice / 1.1, back.atom_types, back.frac_coords), given) < 1e-5


def test_atoms_that_are_equivalent_within_the_tolerance_become_so():
    rng = np.random.default_rng(4)
    exact = to_crystal(QUARTZ * (2, 1, 1))
    noise = rng.uniform(-1e-3, 1e-3, (exact.num_atoms, 3)) @ np.linalg.inv(exact.lattice)
    given = Crystal(exact.lattice, exact.atom_types, (exact.frac_coords + noise) % 1.0)
    change = change_cell(given, "primitive")
    assert change.chosen.num_atoms == 9
    back = change.undo(change.chosen)
    assert 1e-5 < distance(back, given) < SYMPREC
    again = change_cell(back, "primitive")
    assert distance(again.undo(again.chosen), back) < 1e-5


def test_where_there_is_no_way_back_the_crystal_stays_in_the_chosen_cell(monkeypatch):
    def elsewhere(crystal, cell, symprec):
        found = standard_cell(crystal, cell, symprec)
        return Crystal(found.lattice, found.atom_types, (found.frac_coords + 0.1) % 1.0)

    monkeypatch.setattr(src.data.cell_change, "standard_cell", elsewhere)
    change = change_cell(to_crystal(QUARTZ), "conventional")
    assert change.atoms is None
    assert change.undo(change.chosen) is change.chosen


def test_errors_are_those_of_the_choice():
    same = Crystal(np.eye(3) * 4, np.array([11, 11]), np.zeros((2, 3)))
    with pytest.raises(CrystalError, match="spglib finds no primitive cell"):
        change_cell(same, "primitive")
    with pytest.raises(ValueError, match="cell must be one of"):
        change_cell(same, "smallest")
