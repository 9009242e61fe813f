"""Pairs of crystals on which a matcher may go wrong."""

import warnings

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from src.metrics.structure_matching.reduction import Cell
from tests.conftest import ROOT
from tests.crystals import diamond

QUARTZ = Structure.from_spacegroup(
    "P3_221",
    Lattice.hexagonal(4.913, 5.405),
    ["Si", "O"],
    [[0.4697, 0, 0], [0.4135, 0.2669, 0.1191]],
)
PEROVSKITE = Structure(
    Lattice.cubic(3.9),
    ["Sr", "Ti", "O", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
)
WURTZITE = Structure.from_spacegroup(
    "P6_3mc",
    Lattice.hexagonal(3.82, 6.26),
    ["Zn", "S"],
    [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]],
)
BLENDE = Structure.from_spacegroup(
    "F-43m", Lattice.cubic(5.42), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]
)
DIAMOND = diamond(3.567, "C")


def shaken(crystal: Structure, noise: float, seed: int) -> Structure:
    """Displaced by `noise` times the free length per atom; the cell is strained by a fifth."""
    rng = np.random.default_rng(seed)
    step = noise * (crystal.volume / len(crystal)) ** (1 / 3)
    matrix = crystal.lattice.matrix @ (np.eye(3) + 0.2 * noise * rng.standard_normal((3, 3)))
    moved = Structure(matrix, crystal.species, crystal.frac_coords)
    coords = moved.cart_coords + step * rng.standard_normal((len(crystal), 3))
    return Structure(matrix, crystal.species, coords, coords_are_cartesian=True)


def in_another_cell(crystal: Structure, matrix: list[list[int]]) -> Structure:
    """The same crystal in an equivalent cell."""
    return Structure(
        np.array(matrix) @ crystal.lattice.matrix,
        crystal.species,
        crystal.cart_coords,
        coords_are_cartesian=True,
    )


def cell_of(crystal: Structure) -> Cell:
    kinds = np.array([specie.Z for specie in crystal.species])
    return Cell(crystal.lattice.matrix, kinds, crystal.frac_coords)


@pytest.fixture(scope="session")
def prototypes() -> list[Structure]:
    texts = pd.read_csv(ROOT / "data" / "prototypes" / "test.csv")["cif"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Issues encountered while parsing CIF", UserWarning)
        return [Structure.from_str(text, fmt="cif") for text in texts[::7]]


@pytest.fixture(scope="session")
def hard_crystals() -> list[Structure]:
    """High symmetry, cells that are skewed, flat or nearly degenerate, supercells, one atom."""
    skew = [[1, 0, 0], [3, 1, 0], [-2, 2, 1]]
    rng = np.random.default_rng(0)
    nearly = Lattice(Lattice.hexagonal(4, 4 * (1 + 1e-6)).matrix + 1e-6 * rng.random((3, 3)))
    return [
        QUARTZ,
        PEROVSKITE,
        WURTZITE,
        BLENDE,
        DIAMOND,
        *(in_another_cell(crystal, skew) for crystal in (QUARTZ, PEROVSKITE, WURTZITE)),
        shaken(WURTZITE * [2, 1, 1], 0.01, 0),
        shaken(PEROVSKITE * [1, 1, 3], 0.02, 1),
        shaken(DIAMOND, 0.05, 2),
        Structure(nearly, ["Fe", "Fe", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.3, 0.8]]),
        Structure(Lattice.from_parameters(3, 3, 30, 90, 90, 60), ["Fe"], [[0.1, 0.2, 0.3]]),
        Structure(Lattice.from_parameters(4, 4, 4, 60, 60, 60), ["Fe"], [[0, 0, 0]]),
        Structure(Lattice.from_parameters(4, 4, 4, 109.47, 109.47, 109.47), ["Fe"], [[0, 0, 0]]),
    ]


@pytest.fixture(scope="session")
def pairs(prototypes, hard_crystals) -> list[tuple[Structure, Structure]]:
    """With their verdicts far from obvious; each in one order only."""
    found = []
    for k, crystal in enumerate(prototypes[:12] + hard_crystals):
        for noise in (0.04, 0.25) if k < 12 else (0, 0.04, 0.25):
            order = np.random.default_rng(k).permutation(len(crystal))
            shuffled = Structure.from_sites([crystal[int(i)] for i in order])
            found.append((shaken(shuffled, noise, k), crystal))
    mirrored = Structure(QUARTZ.lattice, QUARTZ.species, -QUARTZ.frac_coords)
    iron = hard_crystals[-3:]
    return [
        *found,
        (QUARTZ, mirrored),
        (WURTZITE, BLENDE),
        (DIAMOND, shaken(DIAMOND * [2, 1, 1], 0.01, 3)),
        (PEROVSKITE, PEROVSKITE * [2, 1, 1]),
        (PEROVSKITE, BLENDE),
        *((a, b) for a in iron for b in iron if a is not b),
    ]
