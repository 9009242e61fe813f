"""Crystals that many tests use.

`Structure.from_spacegroup` takes a third of a second for each crystal with a centered cubic space
group. These have the same atoms in the same order.
"""

from pymatgen.core import Lattice, Structure

CENTERED = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]  # the points of an F lattice
BETWEEN = [[0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]
IN_DIAMOND = [
    [0.5, 0, 0.5], [0.25, 0.25, 0.25], [0, 0, 0], [0.25, 0.75, 0.75],
    [0.75, 0.25, 0.75], [0, 0.5, 0.5], [0.5, 0.5, 0], [0.75, 0.75, 0.25],
]  # fmt: skip


def rock_salt(edge: float, cation: str, anion: str) -> Structure:
    """The cubic cell (Fm-3m, 8 atoms), with an edge in Å."""
    return Structure(Lattice.cubic(edge), [cation] * 4 + [anion] * 4, CENTERED + BETWEEN)


def face_centered(edge: float, element: str) -> Structure:
    """The cubic cell of a metal such as copper (Fm-3m, 4 atoms), with an edge in Å."""
    return Structure(Lattice.cubic(edge), [element] * 4, CENTERED)


def diamond(edge: float, element: str) -> Structure:
    """The cubic cell of the diamond structure (Fd-3m, 8 atoms), with an edge in Å."""
    return Structure(Lattice.cubic(edge), [element] * 8, IN_DIAMOND)
