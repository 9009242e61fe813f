"""Read SHELX instruction files (`.res`, `.ins`), which AIRSS also writes, as CIF text.

A file lists the asymmetric unit. LATT and SYMM give the symmetry, UNIT the content of the cell.
Format: https://shelx.uni-goettingen.de, the section on the .ins file.
"""

import re
from collections.abc import Iterator

import numpy as np

from src.data.crystal import CrystalError
from src.data.operations import MAX_SYMMETRY_OPERATIONS, Operations, parse_operations, product_of
from src.data.operations import triplet as triplet_of
from src.data.symbols import ATOMIC_NUMBERS

_CENTRINGS = {
    1: ("x,y,z",),
    2: ("x,y,z", "x+1/2,y+1/2,z+1/2"),
    3: ("x,y,z", "x+2/3,y+1/3,z+1/3", "x+1/3,y+2/3,z+2/3"),
    4: ("x,y,z", "x,y+1/2,z+1/2", "x+1/2,y,z+1/2", "x+1/2,y+1/2,z"),
    5: ("x,y,z", "x,y+1/2,z+1/2"),
    6: ("x,y,z", "x+1/2,y,z+1/2"),
    7: ("x,y,z", "x+1/2,y+1/2,z"),
}
# Words of four letters at most that begin a line and are not the name of an atom.
_INSTRUCTIONS = frozenset((
    "ABIN", "ACTA", "AFIX", "ANIS", "ANSC", "ANSR", "BASF", "BIND", "BLOC", "BOND", "BUMP",
    "CELL", "CGLS", "CHIV", "CONF", "CONN", "DAMP", "DANG", "DEFS", "DELU", "DFIX", "DISP",
    "EADP", "END", "EQIV", "EXTI", "EXYZ", "FEND", "FLAT", "FMAP", "FRAG", "FREE", "FVAR",
    "GRID", "HFIX", "HKLF", "HTAB", "ISOR", "LATT", "LAUE", "LIST", "L.S.", "MERG", "MORE",
    "MOVE", "MPLA", "NCSY", "NEUT", "OMIT", "PART", "PLAN", "PRIG", "REM", "RESI", "RIGU",
    "RTAB", "SADI", "SAME", "SFAC", "SHEL", "SIMU", "SIZE", "SPEC", "STIR", "SUMP", "SWAT",
    "SYMM", "TEMP", "TITL", "TWIN", "TWST", "UNIT", "WGHT", "WIGL", "WPDB", "XNPD", "ZERR",
    "TIME", "MOLE", "RENAM",
))  # fmt: skip
_SITE_TOLERANCE = 2e-3
_OCCUPANCY_TOLERANCE = 2e-3


def cifs_of_res(text: str) -> Iterator[str | CrystalError]:
    """Yield the CIF text of each crystal in a file, or the reason why it cannot be read.

    Several crystals may follow one another, each beginning with TITL.
    """
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line[:4].upper() == "TITL"] or [0]
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        try:
            yield _cif_of(lines[start:stop])
        except CrystalError as error:
            yield error
        except (ValueError, IndexError) as error:
            yield CrystalError(f"the SHELX file is damaged: {error}")


def _cif_of(lines: list[str]) -> str:
    cell: list[float] = []
    lattice_type, symmetry = 1, ["x,y,z"]
    elements: list[str] = []
    units: list[float] = []
    atoms: list[tuple[str, list[float], float]] = []
    title, part = "res", 0
    for words in _instructions(lines):
        name = words[0].upper()[:4]
        if name == "TITL":
            title = "_".join(words[1:2]) or "res"
        elif name == "CELL":
            cell = [float(word) for word in words[2:8]]
        elif name == "LATT":
            lattice_type = int(float(words[1]))
        elif name == "SYMM":
            symmetry.append(" ".join(words[1:]).replace(" ", ""))
        elif name == "SFAC":
            names = words[1:]
            if len(names) > 1 and not names[1].lstrip("$-").isalpha():
                names = names[:1]  # followed by its scattering factor
            elements += [word.lstrip("$").capitalize() for word in names]
        elif name == "UNIT":
            units = [float(word) for word in words[1:]]
        elif name == "PART":
            part = int(float(words[1])) if len(words) > 1 else 0
        elif name in ("END", "HKLF"):
            break
        elif name in _INSTRUCTIONS or re.match(r"[A-Z.]+_", words[0].upper()):
            if name in ("MOVE", "SPEC") or (name == "RESI" and len(words) > 3):
                raise CrystalError(f"the instruction {name} is not supported")
        elif re.match(r"[Qq]\d+$", words[0]):
            continue  # a peak of the difference map
        elif len(words) >= 5:
            if part:
                raise CrystalError(f"atom {words[0]} is disordered (PART {part})")
            atoms.append(_atom(words, elements))
        else:
            raise CrystalError(f"line {' '.join(words)[:60]!r} of the SHELX file is not understood")
    if len(cell) != 6:
        raise CrystalError("the SHELX file has no CELL with six numbers")
    if not atoms:
        raise CrystalError("no atoms")
    operations = _operations(lattice_type, symmetry)
    for label, position, occupancy in atoms:
        _check_occupancy(label, np.array(position), occupancy, operations)
    return _text(title, cell, operations, elements, units, atoms)


def _instructions(lines: list[str]) -> Iterator[list[str]]:
    """The words of each instruction, without comments; a line that ends in = continues."""
    pending = ""
    for raw in lines:
        line = f"{pending} {raw.split('!')[0]}".rstrip()
        pending = ""
        if line.endswith("="):
            pending = line[:-1]
            continue
        words = line.split()
        if words and words[0].upper()[:4] != "REM" and words[0][0] != "+":
            yield words


def _atom(words: list[str], elements: list[str]) -> tuple[str, list[float], float]:
    """The label, which begins with the element; the position; and the site occupation factor."""
    index = int(words[1])
    if not 1 <= index <= len(elements) or elements[index - 1] not in ATOMIC_NUMBERS:
        raise CrystalError(f"atom {words[0]} has no element: SFAC is {' '.join(elements)}")
    # 10 is added to a number that is not refined
    position = [x - 10 if 5 < x < 15 else x for x in map(float, words[2:5])]
    if max(map(abs, position)) > 15:
        raise CrystalError(f"a coordinate of atom {words[0]} is a free variable")
    occupancy = float(words[5]) if len(words) > 5 else 11.0
    occupancy = occupancy - 10 if 5 < occupancy < 15 else occupancy
    return elements[index - 1], position, occupancy


def _operations(lattice_type: int, symmetry: list[str]) -> Operations:
    centring = _CENTRINGS.get(abs(lattice_type))
    if centring is None:
        raise CrystalError(f"LATT {lattice_type} is not a type of lattice")
    parts = [parse_operations(centring)]
    if lattice_type > 0:
        parts.append(parse_operations(("x,y,z", "-x,-y,-z")))
    parts.append(parse_operations(tuple(symmetry)))
    operations = parts[0]
    for each in parts[1:]:
        operations = product_of(operations, each)
        if len(operations) > MAX_SYMMETRY_OPERATIONS:
            raise CrystalError(f"{len(operations)} symmetry operations: more than a group can have")
    return operations


def _check_occupancy(
    label: str, position: np.ndarray, occupancy: float, operations: Operations
) -> None:
    """SHELX divides the occupancy of a full site by the number of operations that keep it."""
    offsets = operations.rotations @ position + operations.translations - position
    offsets -= np.rint(offsets)
    order = int((np.abs(offsets).max(axis=1) < _SITE_TOLERANCE).sum())
    if all(abs(occupancy - full) > _OCCUPANCY_TOLERANCE for full in (1.0, 1 / order)):
        raise CrystalError(
            f"an atom {label} has site occupation factor {occupancy:g}, which is neither 1 nor "
            f"1/{order}: not an ordered crystal"
        )


def _text(
    title: str, cell: list[float], operations: Operations, elements: list[str],
    units: list[float], atoms: list[tuple[str, list[float], float]],
) -> str:  # fmt: skip
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{re.sub('[^!-~]+', '_', title)}"]
    lines += [f"_cell_{name} {value!r}" for name, value in zip(names, cell, strict=True)]
    if units and len(units) == len(elements) and any(n > 0 for n in units):
        content = " ".join(f"{s}{n:g}" for s, n in zip(elements, units, strict=True) if n > 0)
        if not _is_placeholder(units):
            lines += [f"_chemical_formula_sum '{content}'", "_cell_formula_units_Z 1"]
    lines += ["loop_", "_space_group_symop_operation_xyz"]
    lines += [f"'{triplet_of(operations, index)}'" for index in range(len(operations))]
    lines += ["loop_", "_atom_site_type_symbol"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    lines += [f"{symbol} {x!r} {y!r} {z!r}" for symbol, (x, y, z), _ in atoms]
    return "\n".join(lines) + "\n"


def _is_placeholder(units: list[float]) -> bool:
    """Whether UNIT is that of a program that does not fill it in: 1 for each element, or 0."""
    return all(n in (0, 1) for n in units)
