"""Crystals with noise return to their space group, near to where they are."""

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from src.data.cells import symmetry_of
from src.data.cif import Crystal, read_cif
from src.data.structures import to_crystal, to_structure
from src.data.symmetrize import symmetrize, symmetrize_crystal
from src.utils.errors import UserError


def quartz(group: str) -> Structure:
    """Alpha-quartz, left- or right-handed (P3_121 or P3_221)."""
    u, z = (0.4697, 2 / 3) if group == "P3_221" else (0.4697, 1 / 3)
    x, y, w = 0.4135, 0.2669, 0.1191
    w = w + 1 / 3 if group == "P3_121" else 2 / 3 - w
    lattice = Lattice.hexagonal(4.916, 5.405)
    return Structure.from_spacegroup(group, lattice, ["Si", "O"], [[u, 0, z], [x, y, w]])


def noisy(crystal: Crystal, size: float, seed: int = 0) -> Crystal:
    """Every coordinate of atoms, and every entry of the cell, displaced by about `size` Å."""
    rng = np.random.default_rng(seed)
    lattice = crystal.lattice + rng.normal(0, size / 2, (3, 3))
    shift = rng.normal(0, size, crystal.frac_coords.shape) @ np.linalg.inv(lattice)
    return Crystal(lattice, crystal.atom_types, (crystal.frac_coords + shift) % 1.0)


def distances(first: Crystal, second: Crystal) -> np.ndarray:
    """How far each atom is from its place in the other crystal, Å."""
    offsets = first.frac_coords - second.frac_coords
    return np.linalg.norm((offsets - np.rint(offsets)) @ second.lattice, axis=1)


@pytest.mark.parametrize("group", ["P3_121", "P3_221"])
def test_handedness_is_kept(group):
    ideal = to_crystal(quartz(group))
    assert ideal.num_atoms == 9
    number = {"P3_121": 152, "P3_221": 154}[group]
    found = symmetrize_crystal(noisy(ideal, 0.01), 0.1)
    assert (found.before, found.after, found.gained) == (1, number, True)
    assert symmetry_of(found.crystal, 1e-5).number == number
    assert distances(found.crystal, ideal).max() < 0.05


@pytest.mark.parametrize("mirrored", [False, True])
def test_real_crystals_return_to_their_group(shared_data, mirrored):
    """In the cells and orientations as given, also if these are left-handed."""
    rows = pd.read_csv(shared_data / "mp_20" / "test.csv.gz", nrows=12)
    returned = 0
    for i, cif in enumerate(rows["cif"]):
        ideal = read_cif(cif, niggli=False)
        if mirrored:
            ideal = Crystal(ideal.lattice * [1, 1, -1], ideal.atom_types, ideal.frac_coords)
        number = symmetry_of(ideal, 0.01).number
        given = noisy(ideal, 0.01, seed=i)
        found = symmetrize_crystal(given, 0.1)
        # exactly symmetric, near to where it was, in the same setting and orientation
        assert symmetry_of(found.crystal, 1e-5).number == found.after
        assert distances(given, found.crystal).max() == pytest.approx(found.displacement, abs=1e-9)
        assert found.displacement < 0.1
        assert np.abs(found.crystal.lattice - given.lattice).max() < 0.06
        # a second call changes nothing
        again = symmetrize_crystal(found.crystal, 0.1)
        assert np.abs(again.crystal.lattice - found.crystal.lattice).max() < 1e-6
        assert distances(again.crystal, found.crystal).max() < 1e-6
        assert (again.before, again.after, again.gained) == (found.after, found.after, False)
        returned += found.after == number
    assert returned >= 11  # another may gain more than it had


def test_what_is_left_as_it_is():
    lattice = Lattice.from_parameters(5.1, 6.3, 7.4, 81, 95, 103)
    sites = [[1.1, 0.2, -1.7], [0.44, 0.71, 0.08], [0.83, 0.37, 0.69]]
    plain = Structure(lattice, ["Na", "Cl", "O"], sites, site_properties={"tag": [1, 2, 3]})
    found = symmetrize(plain, 0.1)
    assert np.abs(found.frac_coords - plain.frac_coords).max() < 1e-9
    assert np.abs(found.lattice.matrix - lattice.matrix).max() < 1e-9
    assert found.site_properties == {"tag": [1, 2, 3]}
    assert symmetrize_crystal(to_crystal(plain), 0.1).after == 1
    with pytest.raises(UserError, match="positive"):
        symmetrize(plain, 0.0)


def test_the_given_crystal_is_not_changed():
    given = noisy(to_crystal(quartz("P3_121")), 0.01)
    lattice, coords = given.lattice.copy(), given.frac_coords.copy()
    structure = symmetrize(to_structure(given), 0.1)
    assert SpacegroupAnalyzer(structure, 1e-4).get_space_group_number() == 152
    assert (given.lattice == lattice).all()
    assert (given.frac_coords == coords).all()
