import pytest
from pymatgen.core import Lattice, Structure

from src.metrics.generation.nearest import Nearest, nearest_of_formula


def cubic(edge: float, symbols: list[str], last: float = 0.5) -> Structure:
    coords = [[0, 0, 0], [0.5, 0.5, last], [0.5, last, 0.5]]
    return Structure(Lattice.cubic(edge), symbols, coords[: len(symbols)])


def test_the_nearest_of_the_same_formula():
    cscl = cubic(4.0, ["Cs", "Cl"])
    known = [
        cubic(3.0, ["Na"]),
        Structure(Lattice.orthorhombic(3, 3, 12), ["Cl", "Cs"], [[0, 0, 0], [0, 0, 0.2]]),
        cubic(4.1, ["Cs", "Cl"], last=0.47),
        cscl * (2, 1, 1),
        Structure(Lattice.orthorhombic(3, 3, 7.2), ["Cs", "Cl"], [[0, 0, 0], [0, 0, 0.3]]),
    ]
    strange = Structure(Lattice.orthorhombic(2, 2, 16.2), ["Cs", "Cl"], [[0, 0, 0], [0, 0, 0.1]])
    found = nearest_of_formula([cscl, cubic(4.0, ["K", "Cl"]), strange], known)
    assert found == [Nearest(3, pytest.approx(0, abs=1e-6)), None, Nearest(4, None)]
    assert nearest_of_formula([cubic(4.0, ["K"])], known) == [None]
    assert nearest_of_formula([], known) == []
