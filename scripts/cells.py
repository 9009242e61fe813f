"""Compare choices of cell on real crystals: `python scripts/cells.py --data-dir FOLDER`.

Each crystal is converted to each choice of cell three times: as it is given, in a different basis
of the same lattice with a different origin, and in a cell of twice the volume. The more often the
results agree, the closer the choice is to being unique.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

from src.data.cells import CELLS, SYMPREC, choose_cell  # noqa: E402
from src.data.cif import Crystal, CrystalError  # noqa: E402
from src.data.readers import DataError, crystal_of  # noqa: E402
from src.data.splits import find_readers  # noqa: E402

ANGLE_TOLERANCE = 0.1  # degrees; lengths and positions are compared within SYMPREC
MIN_ENTRIES = 6  # smallest sum of absolute entries of a random change of basis; the identity has 3
HEADER = (
    "cell", "atoms, mean", "atoms, max", "other number of atoms", "volume / given",
    "crystals / CPU s", "same cell", "same positions", "same cell of a doubled one", "fails",
)  # fmt: skip


@dataclass
class Tally:
    """Results for one choice of cell, with one entry per crystal."""

    num_atoms: list[int] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    volume_ratio: list[float] = field(default_factory=list)
    same_cell: list[bool] = field(default_factory=list)
    same_positions: list[bool] = field(default_factory=list)
    same_of_doubled: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    fails: int = 0

    def row(self, cell: str) -> tuple[str, ...]:
        """The table row, with one value for each column of `HEADER`."""

        def share(found: list[bool]) -> str:
            return f"{100 * np.mean(found):.1f} %"

        return (
            cell, f"{np.mean(self.num_atoms):.2f}", f"{max(self.num_atoms)}", share(self.changed),
            f"{np.mean(self.volume_ratio):.3f}", f"{len(self.num_atoms) / self.seconds:,.0f}",
            share(self.same_cell), share(self.same_positions), share(self.same_of_doubled),
            str(self.fails),
        )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print the table as Markdown and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="same as data.data_dir")
    parser.add_argument("--files", default="*", help="same as data.files")
    parser.add_argument("--num", type=int, default=3000, help="crystals to draw at random")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    try:
        crystals = _read(args.data_dir, args.files)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    drawn = rng.permutation(len(crystals))[: args.num]
    tallies = {cell: Tally() for cell in CELLS}
    for i in track(drawn, "Choosing cells", console=Console(stderr=True), transient=True):
        given = crystals[i]
        rewritten, doubled = rewrite(given, rng), double(given, rng)
        for cell, tally in tallies.items():
            _count(tally, cell, given, rewritten, doubled)
    print(f"{len(drawn):,} of {len(crystals):,} crystals, symprec {SYMPREC} Å\n")
    rows = [HEADER, ("---",) * len(HEADER), *(tally.row(cell) for cell, tally in tallies.items())]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return 0


def _read(data_dir: Path, files: str) -> list[Crystal]:
    found = find_readers(data_dir, pattern=files)
    readers = list(found.values()) if isinstance(found, dict) else [found]
    crystals = []
    for record in (record for reader in readers for record in reader):
        try:
            crystals.append(crystal_of(record))
        except CrystalError:
            continue
    if not crystals:
        raise DataError(f"{data_dir} contains no crystal that can be read")
    return crystals


def _count(tally: Tally, cell: str, given: Crystal, rewritten: Crystal, doubled: Crystal) -> None:
    start = time.process_time()
    try:
        chosen = choose_cell(given, cell)
    except CrystalError:
        tally.fails += 1
        return
    tally.seconds += time.process_time() - start
    tally.num_atoms.append(chosen.num_atoms)
    tally.changed.append(chosen.num_atoms != given.num_atoms)
    ratio = np.linalg.det(chosen.lattice) / abs(np.linalg.det(given.lattice))
    tally.volume_ratio.append(float(ratio))
    again, smaller = _chosen(rewritten, cell), _chosen(doubled, cell)
    same = again is not None and same_cell(chosen, again)
    tally.same_cell.append(same)
    tally.same_positions.append(same and again is not None and same_positions(chosen, again))
    tally.same_of_doubled.append(smaller is not None and same_cell(chosen, smaller))


def _chosen(crystal: Crystal, cell: str) -> Crystal | None:
    try:
        return choose_cell(crystal, cell)
    except CrystalError:
        return None


def rewrite(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """The same crystal in a random other basis of its lattice, with a random origin."""
    change = np.eye(3)
    while np.abs(change).sum() < MIN_ENTRIES:
        i, j = rng.permutation(3)[:2]
        change[i] += rng.choice([-1, 1]) * change[j]
    coords = crystal.frac_coords @ np.linalg.inv(change) + rng.random(3)
    return Crystal(change @ crystal.lattice, crystal.atom_types, coords % 1.0 % 1.0)


def double(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """The same crystal in a cell that is doubled along a random axis."""
    axis = rng.integers(3)
    scale = np.ones(3)
    scale[axis] = 2
    coords = crystal.frac_coords / scale
    return Crystal(
        crystal.lattice * scale[:, None],
        np.tile(crystal.atom_types, 2),
        np.concatenate([coords, coords + np.eye(3)[axis] / 2]),
    )


def same_cell(one: Crystal, other: Crystal) -> bool:
    """Whether the lengths and angles (in order) and the numbers of atoms are the same."""
    (lengths, angles), (others, other_angles) = _parameters(one), _parameters(other)
    return (
        one.num_atoms == other.num_atoms
        and bool(np.abs(lengths - others).max() < SYMPREC)
        and bool(np.abs(angles - other_angles).max() < ANGLE_TOLERANCE)
    )


def same_positions(one: Crystal, other: Crystal) -> bool:
    """Whether a shift of the origin puts each atom of `one` on an atom of its kind in `other`."""
    numbers, counts = np.unique(one.atom_types, return_counts=True)
    rarest = numbers[counts.argmin()]
    anchor = one.frac_coords[one.atom_types == rarest][0]
    alike = one.atom_types[:, None] == other.atom_types
    for target in other.frac_coords[other.atom_types == rarest]:
        offsets = (one.frac_coords + target - anchor)[:, None] - other.frac_coords
        distances = np.linalg.norm((offsets - np.rint(offsets)) @ one.lattice, axis=2)
        if ((distances < 2 * SYMPREC) & alike).any(axis=1).all():
            return True
    return False


def _parameters(crystal: Crystal) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    a, b, c = crystal.lattice / lengths[:, None]
    return lengths, np.degrees(np.arccos(np.clip([b @ c, a @ c, a @ b], -1, 1)))


if __name__ == "__main__":
    sys.exit(main())
