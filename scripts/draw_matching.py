"""Draw the pairs of crystals on the page about matching: `python scripts/draw_matching.py FOLDER`.

Each is a `Case` that says what the matcher makes of it; a test holds it to that.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Lattice, Structure

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.metrics.matching import CDVAE, PYMATGEN, UNREDUCED, MatcherSettings  # noqa: E402
from src.report.pictures import draw_crystal, extent  # noqa: E402


@dataclass(frozen=True)
class Verdict:
    """What comes of two crystals of a case, given by their places, in this order.

    Attributes:
        settings: To match with.
        first, second: Places.
        rms: None for no match.
    """

    settings: MatcherSettings
    first: int
    second: int
    rms: float | None


@dataclass(frozen=True)
class Case:
    """Some crystals, and what the matcher makes of them.

    Attributes:
        label: What to write below.
        crystals: From the top.
        verdicts: Those that the label or the page tells.
    """

    label: str
    crystals: tuple[Structure, ...]
    verdicts: tuple[Verdict, ...]


QUARTZ = Structure.from_spacegroup(
    "P3_221",
    Lattice.hexagonal(4.913, 5.405),
    ["Si", "O"],
    [[0.4697, 0.0, 0.0], [0.4135, 0.2669, 0.1191]],
)
TLCL = Structure(Lattice.cubic(3.834), ["Tl", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
CUBIC_PBTIO3 = Structure(
    Lattice.cubic(3.97),
    ["Pb", "Ti", "O", "O", "O"],
    [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]],
)
POLAR_PBTIO3 = Structure(
    Lattice.tetragonal(3.90, 4.15),
    ["Pb", "Ti", "O", "O", "O"],
    [
        [0.0, 0.0, 0.0],
        [0.5, 0.5, 0.5377],
        [0.5, 0.5, 0.1118],
        [0.5, 0.0, 0.6174],
        [0.0, 0.5, 0.6174],
    ],
)
# Entries of the Materials Project (CC BY 4.0), in their primitive cells
SNS_MP_1379 = Structure(
    Lattice.from_parameters(3.805560, 5.792169, 6.345306, 90, 107.449920, 90),
    ["Sn", "Sn", "S", "S"],
    [
        [0.841893, 0.75, 0.683786],
        [0.158107, 0.25, 0.316214],
        [0.194318, 0.75, 0.388636],
        [0.805682, 0.25, 0.611364],
    ],
)
SNS_MP_559676 = Structure(
    Lattice.from_parameters(4.107896, 4.111880, 6.208425, 109.338787, 90, 90),
    ["Sn", "Sn", "S", "S"],
    [
        [0.25, 0.126389, 0.252778],
        [0.75, 0.873611, 0.747222],
        [0.25, 0.348603, 0.697206],
        [0.75, 0.651397, 0.302794],
    ],
)
PRSB_MP_1644 = Structure(
    Lattice.from_parameters(3.464378, 4.142879, 4.142879, 90, 90, 90),
    ["Pr", "Sb"],
    [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
)
PRSB_MP_1785 = Structure(
    Lattice.from_parameters(4.559617, 4.559617, 4.559617, 60, 60, 60),
    ["Pr", "Sb"],
    [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
)
CUO2_MP_705439 = Structure(
    Lattice.from_parameters(2.421291, 6.445952, 7.067043, 90, 90, 90),
    ["Cu", "O", "O"],
    [[0.0, 0.5, 0.0], [0.0, 0.5, 0.412435], [0.0, 0.5, 0.587565]],
)
CUO2_MP_600604 = Structure(
    Lattice.from_parameters(2.744634, 5.685135, 5.699451, 86.668019, 76.067386, 76.031591),
    ["Cu", "O", "O"],
    [[0.5, 0.0, 0.0], [0.105988, 0.788024, 0.0], [0.894012, 0.211976, 0.0]],
)
CUO2_MP_614565 = Structure(
    Lattice.from_parameters(2.746206, 3.882122, 5.907673, 85.284436, 76.559995, 69.286266),
    ["Cu", "O", "O"],
    [[0.5, 0.0, 0.0], [0.10212, 0.0, 0.79576], [0.89788, 0.0, 0.20424]],
)


def _translated(crystal: Structure) -> Structure:
    moved = crystal.copy()
    return moved.translate_sites(range(len(moved)), [0.3, 0.2, 0.5])


def _in_cell(crystal: Structure, matrix: list[list[int]]) -> Structure:
    """The same crystal in another cell of the same volume."""
    lattice = np.array(matrix) @ crystal.lattice.matrix
    coords = crystal.cart_coords
    return Structure(lattice, crystal.species, coords, coords_are_cartesian=True, to_unit_cell=True)


def _scaled(crystal: Structure, factor: float) -> Structure:
    return Structure(
        Lattice(factor ** (1 / 3) * crystal.lattice.matrix), crystal.species, crystal.frac_coords
    )


def _mirrored(crystal: Structure) -> Structure:
    coords = np.mod(-crystal.frac_coords, 1)
    return Structure(crystal.lattice, crystal.species, coords)


def _displaced(crystal: Structure, *moves: float) -> Structure:
    """Each chlorine moved along c by so many Å."""
    moved = crystal.copy()
    chlorine = [i for i, site in enumerate(moved) if site.specie.symbol == "Cl"]
    for i, move in zip(chlorine, moves, strict=True):
        moved.translate_sites([i], [0, 0, move], frac_coords=False)
    return moved


def _sheared(angle: float) -> Structure:
    lattice = Lattice.from_parameters(3.834, 3.834, 3.834, 90, 90, angle)
    return Structure(lattice, TLCL.species, TLCL.frac_coords)


def _both(settings: MatcherSettings, rms: float | None) -> tuple[Verdict, Verdict]:
    """In either order."""
    return Verdict(settings, 0, 1, rms), Verdict(settings, 1, 0, rms)


DOUBLE = TLCL * (2, 1, 1)
DIVIDED_OUT = [
    Case("origin", (QUARTZ, _translated(QUARTZ)), _both(PYMATGEN, 0.0)),
    Case(
        "choice of cell",
        (QUARTZ, _in_cell(QUARTZ, [[1, 0, 0], [1, 1, 0], [0, -1, 1]])),
        _both(PYMATGEN, 0.0),
    ),
    Case("multiple of the cell", (TLCL, DOUBLE), _both(PYMATGEN, 0.0)),
    Case("half the volume", (QUARTZ, _scaled(QUARTZ, 0.5)), _both(PYMATGEN, 0.0)),
    Case("handedness", (QUARTZ, _mirrored(QUARTZ)), _both(PYMATGEN, 0.0)),
]
"""Pairs of one crystal written or made in two ways."""

TOLERANCES = [
    Case(
        "PbTiO$_3$, cubic\nand ferroelectric\nrms 0.085",
        (CUBIC_PBTIO3, POLAR_PBTIO3),
        (*_both(CDVAE, 0.0854), *_both(PYMATGEN, 0.0854)),
    ),
    Case(
        "SnS, two polymorphs\nCDVAE: rms 0.479\npymatgen: no match",
        (SNS_MP_1379, SNS_MP_559676),
        (*_both(CDVAE, 0.4794), *_both(PYMATGEN, None)),
    ),
    Case(
        "TlCl, Cl is 1.82 Å off\nrms 0.2999\na match for both",
        (TLCL, _displaced(TLCL, 1.825)),
        (*_both(CDVAE, 0.2999), *_both(PYMATGEN, 0.2999)),
    ),
    Case(
        "TlCl, an angle of 99.9°\nCDVAE: rms 0\npymatgen: no match",
        (TLCL, _sheared(99.9)),
        (*_both(CDVAE, 0.0), *_both(PYMATGEN, None)),
    ),
]
"""Pairs that are different, and match."""

SURPRISES = [
    Case(
        "not symmetric\nPrSb: first to second, rms 0\nsecond to first, no match",
        (PRSB_MP_1644, PRSB_MP_1785),
        (Verdict(CDVAE, 0, 1, 0.0), Verdict(CDVAE, 1, 0, None)),
    ),
    Case(
        "not transitive\nCuO$_2$: first and second match,\nand second and third",
        (CUO2_MP_705439, CUO2_MP_600604, CUO2_MP_614565),
        (
            Verdict(CDVAE, 0, 1, 0.3918),
            Verdict(CDVAE, 1, 2, 0.0125),
            Verdict(CDVAE, 2, 1, 0.0125),
            Verdict(CDVAE, 0, 2, None),
            Verdict(CDVAE, 2, 0, None),
        ),
    ),
    Case(
        "a hair\none Cl of two is 0.249 Å off,\nor 0.251 Å",
        (DOUBLE, _displaced(DOUBLE, 0.249, 0), _displaced(DOUBLE, 0.251, 0)),
        (
            Verdict(CDVAE, 1, 0, 0.0205),
            Verdict(CDVAE, 2, 0, None),
            Verdict(UNREDUCED, 1, 0, 0.0354),
            Verdict(UNREDUCED, 2, 0, 0.0357),
        ),
    ),
    Case(
        "an average\nboth Cl are 0.12 Å off,\nopposite ways: rms 0",
        (DOUBLE, _displaced(DOUBLE, 0.12, -0.12)),
        (*_both(CDVAE, 0.0), *_both(PYMATGEN, 0.0), *_both(UNREDUCED, 0.0279)),
    ),
]
"""Where a verdict is not what one expects."""

PICTURES: dict[str, list[Case]] = {
    "matching_divided_out.png": DIVIDED_OUT,
    "matching_tolerances.png": TOLERANCES,
    "matching_surprises.png": SURPRISES,
}


def draw(cases: list[Case]) -> Figure:
    """The crystals of each case below one another, at one scale."""
    rows = max(len(case.crystals) for case in cases)
    figure = Figure(figsize=(2.4 * len(cases), 1.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(cases), squeeze=False)
    for column, case in zip(axes.T, cases, strict=True):
        scale = max(map(extent, case.crystals))
        for ax, crystal in zip(column, case.crystals, strict=False):
            draw_crystal(ax, crystal, scale)
        for ax in column[len(case.crystals) :]:
            ax.set_axis_off()
        column[0].set_title(case.label, fontsize=9)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draw all pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="such as docs/images")
    args = parser.parse_args(argv)
    for name, cases in PICTURES.items():
        draw(cases).savefig(args.folder / name, dpi=110)


if __name__ == "__main__":
    main()
