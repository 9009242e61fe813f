"""Simple structures of the elements, for references that have no crystal of some element.

A phase diagram needs every pure element. The lowest of a few common structures, relaxed by the
potential, is an upper bound of the energy of the element's ground state, so that energies above the
hull can only come out too low.
"""

from __future__ import annotations

import math

import numpy as np
from ase.data import atomic_numbers, covalent_radii, vdw_radii
from pymatgen.core import Element

from src.data.crystal import Crystal

# bond length in Å and volume of a molecule in its crystal in Å^3, both roughly: it is relaxed
_MOLECULES = {
    "H": (0.74, 38.0),
    "N": (1.10, 45.0),
    "O": (1.21, 35.0),
    "F": (1.42, 32.0),
    "Cl": (1.99, 57.0),
    "Br": (2.28, 66.0),
    "I": (2.67, 84.0),
}
_NOBLE_GASES = ("He", "Ne", "Ar", "Kr", "Xe")
_STRETCH = 1.1  # most bonds in solids are longer than the sum of two covalent radii


def simple_structures(symbol: str) -> dict[str, Crystal]:
    """Common structures of an element, by name, with bonds about as long as usual.

    These are fcc, bcc and hcp; for elements of the p block, also simple cubic, diamond, the layers
    of arsenic (A7) and the chains of selenium (A8); for carbon, also graphite. For elements that
    form diatomic molecules, it is dimers on an fcc lattice along its diagonal, and for noble gases
    fcc: other structures would be so dense that potentials give energies without meaning.
    """
    number = atomic_numbers[symbol]
    fcc = np.ones((3, 3)) - np.eye(3)
    if symbol in _NOBLE_GASES:
        lattice = fcc * math.sqrt(2) * float(vdw_radii[number])
        return _as_crystals({"fcc": (lattice, [[0, 0, 0]])}, number)
    if symbol in _MOLECULES:
        bond, volume = _MOLECULES[symbol]
        lattice = fcc * (volume / 2) ** (1 / 3)
        along = np.full(3, 0.5 * bond / np.linalg.norm(lattice.sum(0)))
        return _as_crystals({"dimers": (lattice, [along, 1 - along])}, number)
    d = 2 * _STRETCH * float(covalent_radii[number])
    hexagonal = np.array([[1, 0, 0], [-0.5, math.sqrt(0.75), 0], [0, 0, 1]])
    third = [1 / 3, 2 / 3]
    structures: dict[str, tuple[np.ndarray, list]] = {
        "fcc": (fcc * d / math.sqrt(2), [[0, 0, 0]]),
        "bcc": ((np.ones((3, 3)) - 2 * np.eye(3)) * d / math.sqrt(3), [[0, 0, 0]]),
        "hcp": (
            hexagonal * d * np.array([[1], [1], [math.sqrt(8 / 3)]]),
            [[*third, 0.25], [*third[::-1], 0.75]],
        ),
    }
    if Element(symbol).block == "p":
        structures |= {
            "simple cubic": (np.eye(3) * d, [[0, 0, 0]]),
            "diamond": (fcc * 2 * d / math.sqrt(3), [[0, 0, 0], [0.25] * 3]),
            "A7": (_rhombohedral(1.64 * d, 54.5), [[0.227] * 3, [0.773] * 3]),
            "A8": (
                hexagonal * d * np.array([[1.84], [1.84], [2.09]]),
                [[0.225, 0, 1 / 3], [0, 0.225, 2 / 3], [0.775, 0.775, 0]],
            ),
        }
    if symbol == "C":
        layers = [[0, 0, 0.25], [0, 0, 0.75], [*third, 0.25], [*third[::-1], 0.75]]
        structures["graphite"] = (hexagonal * np.array([[2.46], [2.46], [6.8]]), layers)
    return _as_crystals(structures, number)


def _as_crystals(structures: dict[str, tuple[np.ndarray, list]], number: int) -> dict[str, Crystal]:
    return {
        name: Crystal(
            np.array(lattice, dtype=np.float64),
            np.full(len(coords), number, dtype=np.int64),
            np.array(coords, dtype=np.float64),
        )
        for name, (lattice, coords) in structures.items()
    }


def _rhombohedral(length: float, angle: float) -> np.ndarray:
    """The lattice (3, 3) of a rhombohedral cell, in Å and degrees, around the diagonal."""
    cosine = math.cos(math.radians(angle))
    metric = length**2 * (cosine * np.ones((3, 3)) + (1 - cosine) * np.eye(3))
    return np.linalg.cholesky(metric)
