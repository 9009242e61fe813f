"""Simple structures of the elements."""

import numpy as np
import pytest
from ase.data import atomic_numbers, covalent_radii

from src.data.cells import symmetry_of
from src.data.crystal import closest_contact
from src.metrics.generation.stability.elements import simple_structures
from src.metrics.generation.validity import invalid_reason

GROUPS = {
    "fcc": 225, "bcc": 229, "hcp": 194, "simple cubic": 221, "diamond": 227, "A7": 166, "A8": 152,
    "graphite": 194, "dimers": 166,
}  # fmt: skip


@pytest.mark.parametrize(
    ("symbol", "names"),
    [("Cu", "fcc bcc hcp"), ("Cs", "fcc"), ("Bi", "fcc A7 A8 diamond"), ("C", "fcc graphite"),
     ("O", "dimers"), ("H", "dimers"), ("I", "dimers"), ("He", "fcc"), ("Xe", "fcc")],
)  # fmt: skip
def test_structures(symbol, names):
    found = simple_structures(symbol)
    assert set(names.split()) <= set(found)
    assert len(found) == {"Cu": 3, "Cs": 3, "C": 8, "Bi": 7}.get(symbol, 1)
    for name, crystal in found.items():
        assert symmetry_of(crystal, 1e-3).number == GROUPS[name], name
        assert invalid_reason(crystal) is None
        assert 3 < np.linalg.det(crystal.lattice) / crystal.num_atoms < 400
        ((_, _, distance),) = closest_contact(crystal)
        if len(found) in (3, 7):
            assert distance == pytest.approx(2.2 * covalent_radii[atomic_numbers[symbol]], rel=0.03)


def test_the_dimers_of_oxygen():
    crystal = simple_structures("O")["dimers"]
    offset = crystal.frac_coords[0] - crystal.frac_coords[1]
    bond = np.linalg.norm((offset - np.rint(offset)) @ crystal.lattice)
    assert bond == pytest.approx(1.21)
    assert np.linalg.det(crystal.lattice) == pytest.approx(35.0)
