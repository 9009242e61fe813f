"""Compare our reader with those of pymatgen and ASE on the test files of other programs.

    python scripts/compare_readers.py ase=path/to/ase/test pymatgen=path/to/pymatgen/tests

reads the files of crystals below each folder with all three, and prints a Markdown table with the
number of crystals in each folder that are read the same by all three, that we read and another
program does not or reads otherwise ("better"), and that we refuse, with the reasons. `--list`
prints each crystal of the latter two kinds. If another program reads a crystal otherwise, the file
itself has to show that it is wrong, or the third program has to agree with us; otherwise the
difference is unexplained, and the exit status is 1.
"""

import argparse
import logging
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ase.io
import gemmi
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.cif import CifParser
from rich.console import Console
from rich.progress import track

from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

from src.data.cif import has_atoms, parse_cif  # noqa: E402
from src.data.cif_claims import read_claims  # noqa: E402
from src.data.cif_tags import Tags  # noqa: E402
from src.data.crystal import Crystal, CrystalError  # noqa: E402
from src.data.packing import read_text  # noqa: E402
from src.data.readers import crystal_of  # noqa: E402
from src.data.rejections import kind_of  # noqa: E402
from src.data.structures import StructureReader, to_crystal, to_structure  # noqa: E402
from src.data.structures.formats import format_of  # noqa: E402

LIMIT = 20  # seconds for one file and reader
MAX_SIZE = 2**20  # bytes; larger files are proteins or trajectories
MAX_ATOMS = 400  # compared atom by atom
FORMATS = ("cif", "poscar", "extxyz", "res", "pdb")

# Same crystal, cell and scale: only rounding may differ.
MATCHER = StructureMatcher(
    ltol=0.01, stol=0.02, angle_tol=0.5, primitive_cell=False, scale=False, attempt_supercell=False
)

SAME, BETTER, REFUSED, UNEXPLAINED = KINDS = ("the same", "better", "refused", "unexplained")


@dataclass
class Outcome:
    """What became of one crystal.

    Attributes:
        where: its file, and its number in it.
        kind: one of `KINDS`.
        reason: why it is not read the same.
    """

    where: str
    kind: str
    reason: str = ""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise a `TimeoutError` after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError("takes too long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def find_files(folder: Path) -> list[Path]:
    """The files below a folder that are named as crystals in a format that all three read."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and format_of(file.name) in FORMATS and file.stat().st_size < MAX_SIZE
        and file.suffix not in (".py", ".yaml", ".md")
    ]  # fmt: skip


def read_ours(file: Path) -> list[tuple[Crystal | None, str]]:
    """The crystals in a file, or the reasons why they are refused."""
    found: list[tuple[Crystal | None, str]] = []
    for record in StructureReader(file):
        try:
            found.append((crystal_of(record), ""))
        except CrystalError as error:
            found.append((None, str(error)))
    return found


def read_with_pymatgen(file: Path) -> list[Crystal | str]:
    """The crystals that pymatgen reads; instead of one that is not ordered, the reason."""
    if format_of(file.name) == "cif":
        parser = CifParser.from_str(read_text(file), occupancy_tolerance=1.0)
        structures = parser.parse_structures(primitive=False)
    elif format_of(file.name) == "poscar":
        structures = [Structure.from_str(read_text(file), fmt="poscar")]
    else:
        structures = [Structure.from_file(file)]
    return [_or_reason(structure) for structure in structures]


def read_with_ase(file: Path) -> list[Crystal | str]:
    """The crystals that ASE reads; instead of one that is not ordered, the reason."""
    names = {"cif": "cif", "poscar": "vasp", "extxyz": "extxyz", "res": "res"}
    kind = names.get(format_of(file.name) or "", "proteindatabank")
    return [_or_reason(atoms) for atoms in ase.io.iread(file, ":", format=kind)]


def _or_reason(given: object) -> Crystal | str:
    try:
        return to_crystal(given)  # type: ignore[arg-type]
    except CrystalError as error:
        return str(error)


OTHERS = {"pymatgen": read_with_pymatgen, "ASE": read_with_ase}


def difference(ours: Crystal, theirs: Crystal) -> str:
    """How a crystal of another reader differs from ours; empty if it does not."""
    if (one := formula(ours)) != (other := formula(theirs)):
        return f"{other} instead of {one}"
    volumes = [abs(np.linalg.det(crystal.lattice)) for crystal in (ours, theirs)]
    if abs(volumes[0] - volumes[1]) > 2e-3 * volumes[0]:
        return f"{volumes[1]:.4g} Å^3 instead of {volumes[0]:.4g}"
    if ours.num_atoms <= MAX_ATOMS and not MATCHER.fit(to_structure(ours), to_structure(theirs)):
        return "other positions"
    return ""


def formula(crystal: Crystal) -> str:
    """The content of the cell, such as `Cl4 Na4`."""
    counts = Counter(gemmi.Element(int(z)).name for z in crystal.atom_types)
    return " ".join(f"{name}{n}" for name, n in sorted(counts.items()))


def explain(file: Path, name: str, ours: Crystal, theirs: list[Crystal | str]) -> str:
    """Why another reader does not read our crystal; empty if the file does not show it."""
    crystals = [each for each in theirs if isinstance(each, Crystal)]
    if not theirs:
        return f"{name} finds no crystal"
    if not crystals:
        return f"{name}: {kind_of(str(theirs[0]))}"
    if any(map(has_overlap, crystals)):
        return f"{name} reads overlapping atoms"
    if format_of(file.name) == "cif" and all(contradicts(file, each) for each in crystals):
        return f"{name} reads other atoms than the formula of the file"
    if format_of(file.name) == "pdb" and all(is_part(each, ours) for each in crystals):
        return f"{name} reads the asymmetric unit of a PDB file for the whole cell"
    return ""


def contradicts(file: Path, crystal: Crystal) -> bool:
    """Whether a crystal differs from the formula, density or volume in all blocks of a CIF."""
    volume = abs(float(np.linalg.det(crystal.lattice)))
    blocks = [block for block in parse_cif(read_text(file)) if has_atoms(block)]
    return bool(blocks) and all(
        bool(read_claims(Tags(block), volume).contradiction(crystal.atom_types, volume, False))
        for block in blocks
    )


def is_part(part: Crystal, whole: Crystal) -> bool:
    """Whether one crystal has the same fraction, below one, of each element of another."""
    counts = [Counter(crystal.atom_types.tolist()) for crystal in (part, whole)]
    ratios = {counts[1][z] / n for z, n in counts[0].items()}
    return counts[0].keys() == counts[1].keys() and len(ratios) == 1 and ratios.pop() > 1


def has_overlap(crystal: Crystal) -> bool:
    """Whether two atoms are at almost the same place."""
    structure = to_structure(crystal)
    if len(structure) > MAX_ATOMS:
        return False
    distances = structure.distance_matrix + 10 * np.eye(len(structure))
    return bool(distances.min() < 0.5)


def compare(file: Path, root: Path) -> list[Outcome]:
    """Compare the three readers on one file."""
    theirs: dict[str, list[Crystal | str] | str] = {}
    for name, read in OTHERS.items():
        try:
            with time_limit(LIMIT):
                theirs[name] = read(file)
        except Exception as error:  # they raise anything
            theirs[name] = f"{type(error).__name__}"
    outcomes = []
    for number, (crystal, reason) in enumerate(read_ours(file)):
        where = f"{file.relative_to(root)} {number}"
        if crystal is None:
            readers = [name for name, found in theirs.items() if has_crystal(found)]
            also = f", read by {' and '.join(readers)}" if readers else ""
            outcomes.append(Outcome(where, REFUSED, f"{kind_of(reason)}{also}"))
            continue
        outcomes.append(_judge(file, where, crystal, theirs))
    return outcomes


def has_crystal(found: list[Crystal | str] | str) -> bool:
    """Whether a reader finds an ordered crystal in a file."""
    return any(isinstance(each, Crystal) for each in found)


def _judge(
    file: Path, where: str, ours: Crystal, theirs: dict[str, list[Crystal | str] | str]
) -> Outcome:
    reasons: list[str] = []
    unexplained: list[str] = []
    num_agreeing = 0
    for name, found in theirs.items():
        if isinstance(found, str):
            reasons.append(f"{name} fails")
            continue
        differences = [difference(ours, each) for each in found if isinstance(each, Crystal)]
        if "" in differences:
            num_agreeing += 1
        elif why := explain(file, name, ours, found):
            reasons.append(why)
        else:
            reasons.append(f"{name} reads another crystal, unlike the other two")
            unexplained.append(f"{name} reads {min(differences, key=len)}")
    if unexplained and not num_agreeing:
        return Outcome(where, UNEXPLAINED, "; ".join(unexplained))
    if num_agreeing == len(theirs):
        return Outcome(where, SAME)
    return Outcome(where, BETTER, "; ".join(reasons))


def print_table(outcomes: dict[str, list[Outcome]]) -> None:
    """Print a Markdown table: a row for each outcome and reason, a column for each folder."""
    counts = {
        name: Counter((each.kind, each.reason) for each in found)
        for name, found in outcomes.items()
    }
    rows = {key for each in counts.values() for key in each}
    print(f"| | why | {' | '.join(outcomes)} |")
    print(f"|---|---|{'---:|' * len(outcomes)}")
    for kind, reason in sorted(rows, key=lambda row: (KINDS.index(row[0]), row[1])):
        numbers = " | ".join(str(counts[name][kind, reason] or "") for name in outcomes)
        print(f"| {kind} | {reason} | {numbers} |")
    totals = " | ".join(str(len(found)) for found in outcomes.values())
    print(f"| all | | {totals} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the readers; the exit status is 1 if a difference is unexplained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--list", action="store_true", help="print each crystal not read the same")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    outcomes: dict[str, list[Outcome]] = {}
    for given in options.folders:
        name, _, folder = given.rpartition("=")
        name = name or Path(folder).name
        outcomes.setdefault(name, [])
        bar = Console(stderr=True)
        for file in track(find_files(Path(folder)), name, console=bar, transient=True):
            outcomes[name] += compare(file, Path(folder))
    if options.list:
        for name, each in outcomes.items():
            for outcome in (outcome for outcome in each if outcome.kind != SAME):
                print(f"{name}: {outcome.where}: {outcome.kind}: {outcome.reason}")
    print_table(outcomes)
    return int(any(o.kind == UNEXPLAINED for each in outcomes.values() for o in each))


if __name__ == "__main__":
    sys.exit(main())
