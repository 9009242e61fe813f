"""Compare cells of the same crystal with those of pymatgen and spglib."""

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from src.data.cells import CELLS, SYMPREC, choose_cell, symmetry_of
from src.data.cif import Crystal, CrystalError, read_cif
from src.data.dataset import ReadOptions, read_record
from src.data.readers import Record
from src.data.structures import to_crystal, to_structure
from tests.crystals import rock_salt

PRIMITIVE = {
    "rocksalt": rock_salt(5.6, "Na", "Cl"),
    "rutile": Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.95), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    ),
    "corundum": Structure.from_spacegroup(
        "R-3c", Lattice.hexagonal(4.76, 12.99), ["Al", "O"], [[0, 0, 0.352], [0.306, 0, 0.25]]
    ),
    "quartz": Structure.from_spacegroup(
        "P3_221", Lattice.hexagonal(4.91, 5.4), ["Si", "O"],
        [[0.47, 0, 2 / 3], [0.413, 0.267, 0.786]],
    ),
}  # fmt: skip
NUM_ATOMS = {"rocksalt": (2, 8), "rutile": (6, 6), "corundum": (10, 30), "quartz": (9, 9)}


def volume(crystal: Crystal) -> float:
    return float(np.linalg.det(crystal.lattice))


def matches(one: Crystal, other: Crystal) -> bool:
    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1)
    return matcher.fit(to_structure(one), to_structure(other))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", PRIMITIVE)
def test_the_crystal_stays_the_same(name, cell):
    given = PRIMITIVE[name]
    primitive, conventional = NUM_ATOMS[name]
    for structure in (given, given.get_primitive_structure(), given * (1, 1, 2)):
        crystal = to_crystal(structure)
        other = choose_cell(crystal, cell)
        expected = {"primitive": primitive, "conventional": conventional}
        assert other.num_atoms == expected.get(cell, crystal.num_atoms)
        assert volume(other) / other.num_atoms == pytest.approx(given.volume / len(given), rel=1e-6)
        assert matches(crystal, other)
        assert other.lattice[0, 1] == other.lattice[2, 0] == other.lattice[2, 1] == 0
        assert ((other.frac_coords >= 0) & (other.frac_coords < 1)).all()
        assert other.atom_types.dtype == np.int64


@pytest.mark.parametrize("name", PRIMITIVE)
def test_cells_agree_with_pymatgen(name):
    given = PRIMITIVE[name]
    analyzer = SpacegroupAnalyzer(given, symprec=SYMPREC)
    conventional = choose_cell(to_crystal(given), "conventional")
    expected = analyzer.get_conventional_standard_structure().lattice.parameters
    np.testing.assert_allclose(to_structure(conventional).lattice.parameters, expected, atol=1e-3)
    primitive = choose_cell(to_crystal(given), "primitive")
    expected = given.get_primitive_structure().get_reduced_structure("niggli").lattice
    ours = to_structure(primitive).lattice
    np.testing.assert_allclose(ours.lengths, expected.lengths, atol=1e-3)
    folded = [np.sort(np.abs(np.array(x.angles) - 90)) for x in (ours, expected)]
    np.testing.assert_allclose(*folded, atol=1e-2)


@pytest.mark.parametrize("cell", CELLS)
def test_a_left_handed_basis_does_not_mirror_the_crystal(cell):
    quartz = to_crystal(PRIMITIVE["quartz"])  # P3_221; its mirror image is P3_121
    swap = np.eye(3)[[1, 0, 2]]
    left = Crystal(swap @ quartz.lattice, quartz.atom_types, quartz.frac_coords @ swap)
    assert volume(left) < 0
    other = choose_cell(left, cell)
    assert volume(other) > 0
    assert symmetry_of(other, SYMPREC).number == 154


def test_coordinates_are_not_idealized():
    rng = np.random.default_rng(0)
    rutile = to_crystal(PRIMITIVE["rutile"])
    noisy = Crystal(
        rutile.lattice, rutile.atom_types, rutile.frac_coords + rng.uniform(-5e-4, 5e-4, (6, 3))
    )
    for cell in ("primitive", "conventional"):
        crystal = choose_cell(noisy, cell)
        distances = np.sort(to_structure(crystal).distance_matrix[np.triu_indices(6, 1)])
        expected = np.sort(to_structure(noisy).distance_matrix[np.triu_indices(6, 1)])
        np.testing.assert_allclose(distances, expected, atol=1e-6)


def test_overlapping_atoms_have_no_primitive_or_conventional_cell():
    same = Crystal(np.eye(3) * 4, np.array([11, 11]), np.zeros((2, 3)))
    for cell in ("primitive", "conventional"):
        with pytest.raises(CrystalError, match=f"spglib finds no {cell} cell with symprec=0.01 Å"):
            choose_cell(same, cell)
        with pytest.raises(CrystalError, match=r"are 0\.000 Å apart"):  # the more specific error
            read_record(Record("w", "x", crystal=same), ReadOptions(cell))
    with pytest.raises(ValueError, match="one of niggli, primitive, conventional, as_given, not"):
        choose_cell(same, "smallest")


def test_the_limit_on_atoms_applies_to_the_chosen_cell():
    record = Record("w", "x", crystal=to_crystal(PRIMITIVE["rocksalt"]))
    assert read_record(record, ReadOptions("primitive", max_num_atoms=2)).num_atoms == 2
    for cell in ("niggli", "conventional", "as_given"):
        with pytest.raises(CrystalError, match="8 atoms: more than 2"):
            read_record(record, ReadOptions(cell, max_num_atoms=2))


def test_real_crystals(shared_data):
    texts = pd.read_csv(shared_data / "mp_20" / "val.csv.gz", nrows=60)["cif"]
    for text in texts:
        given = read_cif(text, niggli=False)
        numbers = {}
        for cell in CELLS:
            other = choose_cell(given, cell)
            numbers[cell] = other.num_atoms
            per_atom = volume(other) / other.num_atoms
            assert per_atom == pytest.approx(volume(given) / given.num_atoms, rel=1e-3)
            assert StructureMatcher().fit(to_structure(given), to_structure(other))
        analyzer = SpacegroupAnalyzer(to_structure(given), symprec=SYMPREC)
        assert numbers["conventional"] == len(analyzer.get_conventional_standard_structure())
        assert numbers["primitive"] == len(analyzer.find_primitive())
        assert numbers["conventional"] // numbers["primitive"] in (1, 2, 3, 4)
