"""Read and write a crystal as CIF text.

This is the only module that knows the format. Reading is fast (gemmi parses the text, spglib
reduces the cell, and a few small numpy calls do the rest) and strict: text that does not describe
one complete, ordered crystal is rejected with a reason, and nothing is repaired by guessing.

What does not depend on the format (`Crystal`, `check_crystal`, `niggli_reduce`, `orient`) is
implemented in `src.data.crystal` and can be imported from here as well.
"""

import functools
import math
import re
from collections.abc import Iterable, Sequence

import gemmi
import numpy as np
from gemmi import cif

from src.data.crystal import (
    MAX_LATTICE_ENTRY,
    MIN_VOLUME,
    SPGLIB_ERRORS,
    Crystal,
    CrystalError,
    check_crystal,
    lattice_from_parameters,
    lengths_and_cosines,
    niggli_reduce,
    orient,
    signed_volume,
    wrap_coords,
)

__all__ = [
    "MAX_LATTICE_ENTRY",
    "MAX_NUM_ATOMS",
    "MAX_SYMMETRY_OPERATIONS",
    "MIN_VOLUME",
    "OCCUPANCY_TOLERANCE",
    "SITE_TOLERANCE",
    "SPGLIB_ERRORS",
    "Crystal",
    "CrystalError",
    "check_crystal",
    "niggli_reduce",
    "orient",
    "read_cif",
    "write_cif",
]

# The largest space groups have 192 operations in their conventional cell.
MAX_SYMMETRY_OPERATIONS = 192

# Limits the time and memory that malicious text can use. Counts the atoms in the cell before
# the coinciding images of special positions are merged.
MAX_NUM_ATOMS = 10_000

# Fractional. With coordinates rounded to three decimals (0.333, 0.667), images of an atom on a
# special position are up to 0.0015 apart. Two distinct, fully occupied sites are never that close.
SITE_TOLERANCE = 2e-3

OCCUPANCY_TOLERANCE = 1e-3

_CELL_TAGS = (
    *("_cell_length_a", "_cell_length_b", "_cell_length_c"),
    *("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma"),
)
_FRACT_TAGS = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
_OPERATION_TAGS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_HALL_TAGS = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
_HERMANN_MAUGUIN_TAGS = ("_space_group_name_H-M_alt", "_symmetry_space_group_name_H-M")
_NUMBER_TAGS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
_UNKNOWN = ("?", ".")

# gemmi truncates its messages, sometimes in the middle of a multibyte character.
_GEMMI_ERRORS = (RuntimeError, UnicodeDecodeError)

_POINT_WITHOUT_DIGITS = re.compile(r"(?<!\d)\.(?!\d)")  # gemmi reads it as zero


def read_cif(text: str, niggli: bool = True) -> Crystal:
    """Read the crystal in CIF text and apply its symmetry operations.

    The operations are those listed in the text. If none are listed, they follow from the Hall
    symbol, the Hermann-Mauguin name or the space-group number, in that order. If none of these is
    given either, the space group is P1. If a name or number allows several settings, the cell
    angles decide between hexagonal and rhombohedral axes, and origin choice 1 is used, as in gemmi
    and pymatgen. Coinciding images of an atom on a special position are merged; the sites of a P1
    file are never merged.

    If there are several data blocks, the first one with atom coordinates is read. If that block is
    invalid, this is an error. (pymatgen would continue with the next block, which may be a
    different crystal.)

    The lattice has pymatgen's orientation (``Lattice.from_parameters``): c along z, a in the
    xz plane, right-handed.

    Args:
        text: the content of a CIF file.
        niggli: return the Niggli-reduced cell instead of the cell as given. This does not make a
            centered cell primitive, so the number of atoms does not change.

    Raises:
        CrystalError: if the text is not valid CIF, has no cell or no atoms, or contains an unknown
            element, a partially occupied site, two sites at the same position, unreadable numbers
            or symmetry, or more than `MAX_NUM_ATOMS` atoms. Overlapping atoms are not detected
            here but by `check_crystal`.
    """
    block = _block_with_atoms(text)
    parameters = [_number(block, tag) for tag in _CELL_TAGS]
    lattice = lattice_from_parameters(parameters[:3], parameters[3:])
    atom_types, frac_coords = _read_sites(block)
    operations = _read_operations(block)
    if len(atom_types) * len(operations) > MAX_NUM_ATOMS:
        raise CrystalError(
            f"{len(atom_types)} sites under {len(operations)} symmetry operations: "
            f"more than {MAX_NUM_ATOMS} atoms"
        )
    if len(operations) > 1:
        orbits = [_orbit(position, operations) for position in frac_coords]
        atom_types = np.repeat(atom_types, [len(orbit) for orbit in orbits])
        frac_coords = np.concatenate(orbits)
    frac_coords = wrap_coords(frac_coords)

    # A cheap check for duplicate sites. `check_crystal` finds atoms that are merely too close.
    if len(set(map(tuple, (frac_coords.round(3) % 1).tolist()))) < len(frac_coords):
        raise CrystalError("two sites share one position")
    crystal = Crystal(lattice, atom_types, frac_coords)
    return niggli_reduce(crystal) if niggli else crystal


def write_cif(crystal: Crystal, name: str) -> str:
    """Write P1 CIF text, which reads back as the same cell parameters and coordinates.

    Numbers have all digits of a float64. A CIF stores lengths and angles but no orientation, so
    `read_cif` returns the lattice in pymatgen's orientation.

    Args:
        crystal: the crystal to write. A left-handed lattice is inverted together with the
            coordinates, so that the crystal is not mirrored.
        name: name of the data block. Characters that CIF does not allow become underscores.

    Raises:
        CrystalError: if the lattice has no volume, or an atomic number is not that of an element.
    """
    symbols = [gemmi.Element(int(number)).name for number in crystal.atom_types]
    if "X" in symbols:
        raise CrystalError(
            f"atomic number {crystal.atom_types[symbols.index('X')]} is not an element"
        )
    right_handed = signed_volume(crystal.lattice) > 0
    frac_coords = crystal.frac_coords if right_handed else wrap_coords(-crystal.frac_coords)
    lengths, cosines = lengths_and_cosines(crystal.lattice)
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist()
    lines = [
        f"data_{re.sub('[^!-~]+', '_', name)}",
        *(f"{tag} {value!r}" for tag, value in zip(_CELL_TAGS, lengths + angles, strict=True)),
        "_space_group_name_H-M_alt 'P 1'",
        "_space_group_IT_number 1",
        "loop_",
        "_space_group_symop_operation_xyz",
        "'x, y, z'",
        "loop_",
        "_atom_site_type_symbol",
        "_atom_site_label",
        *_FRACT_TAGS,
        "_atom_site_occupancy",
    ]
    for index, (symbol, (x, y, z)) in enumerate(
        zip(symbols, frac_coords.astype(float).tolist(), strict=True)
    ):
        lines.append(f"{symbol} {symbol}{index} {x!r} {y!r} {z!r} 1")
    return "\n".join(lines) + "\n"


def _block_with_atoms(text: str) -> cif.Block:
    if not isinstance(text, str) or not text.strip():
        raise CrystalError("empty CIF")
    try:
        document = cif.read_string(text.encode())
    except (ValueError, RuntimeError) as error:
        raise CrystalError(f"not valid CIF: {' '.join(str(error).split())}") from error
    for block in document:
        if len(block.find_values(_FRACT_TAGS[0])) > 0:
            return block
    raise CrystalError("no atoms with fractional coordinates")


def _first_value(block: cif.Block, tags: Sequence[str]) -> str | None:
    """The value of the first tag that has one, without quotation marks."""
    for tag in tags:
        value = block.find_value(tag)
        if value is not None and value not in _UNKNOWN:
            return cif.as_string(value).strip()
    return None


def _number(block: cif.Block, tag: str) -> float:
    text = block.find_value(tag)
    if text is None:
        raise CrystalError(f"{tag} is missing")
    number = cif.as_number(text)  # ignores a standard uncertainty; NaN if not a number
    if not math.isfinite(number):
        raise CrystalError(f"{tag} is {text}, not a number")
    return number


def _column(block: cif.Block, tag: str, num_rows: int) -> list[str]:
    column = list(block.find_values(tag))
    if len(column) != num_rows:
        raise CrystalError(f"{tag} has {len(column)} values for {num_rows} atoms")
    return column


def _read_sites(block: cif.Block) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (n,) and fractional coordinates (n, 3) of the listed sites."""
    num_sites = len(block.find_values(_FRACT_TAGS[0]))
    if num_sites > MAX_NUM_ATOMS:
        raise CrystalError(f"{num_sites} sites: more than {MAX_NUM_ATOMS} atoms")
    symbols = list(block.find_values("_atom_site_type_symbol"))
    if not symbols:
        symbols = _column(block, "_atom_site_label", num_sites)
    elif len(symbols) != num_sites:
        raise CrystalError(f"{len(symbols)} type symbols for {num_sites} atoms")
    atom_types = np.array([_atomic_number(symbol) for symbol in symbols], dtype=np.int64)

    columns = []
    for tag in _FRACT_TAGS:
        column = _column(block, tag, num_sites)
        numbers = [cif.as_number(text) for text in column]
        if not all(map(math.isfinite, numbers)):
            bad = next(i for i, number in enumerate(numbers) if not math.isfinite(number))
            raise CrystalError(f"{tag} of atom {bad} is {column[bad]}, not a number")
        columns.append(numbers)

    for index, text in enumerate(block.find_values("_atom_site_occupancy")):
        # By CIF's definition, the default for a missing or unknown occupancy is 1
        if text != "1" and text not in _UNKNOWN:
            occupancy = cif.as_number(text)
            if not abs(occupancy - 1) <= OCCUPANCY_TOLERANCE:
                raise CrystalError(f"atom {index} has occupancy {text}: not an ordered crystal")
    return atom_types, np.array(columns).T


@functools.lru_cache(maxsize=4096)
def _atomic_number(symbol: str) -> int:
    """The atomic number for a type symbol or label such as Fe, Fe3+, Fe1 or D.

    All leading letters together must be an element symbol. Accepting a prefix would allow more
    labels, but read water (Wat) as tungsten and a vacancy (Va) as vanadium.
    """
    symbol = cif.as_string(symbol)
    letters = re.match(r"[A-Za-z]*", symbol).group()  # type: ignore[union-attr]
    number = 1 if letters == "T" else gemmi.Element(letters).atomic_number
    if number == 0:
        raise CrystalError(f"{symbol!r} is not an element")
    return number


def _read_operations(block: cif.Block) -> np.ndarray:
    """The symmetry operations as (m, 4, 4) matrices on fractional coordinates, identity first."""
    for tag in _OPERATION_TAGS:
        triplets = [text for text in block.find_values(tag) if text not in _UNKNOWN]
        if len(triplets) > MAX_SYMMETRY_OPERATIONS:
            raise CrystalError(
                f"{len(triplets)} symmetry operations: no space group has more than "
                f"{MAX_SYMMETRY_OPERATIONS}"
            )
        if triplets:
            return _matrices(_parse_operation(cif.as_string(triplet)) for triplet in triplets)
    return _matrices(_space_group_operations(block))


def _parse_operation(triplet: str) -> gemmi.Op:
    try:
        operation = gemmi.Op(triplet)
    except _GEMMI_ERRORS as error:
        raise CrystalError(f"symmetry operation {triplet!r} cannot be read") from error
    if _POINT_WITHOUT_DIGITS.search(triplet):
        raise CrystalError(f"symmetry operation {triplet!r} cannot be read")
    if abs(operation.det_rot()) != gemmi.Op.DEN**3:
        raise CrystalError(f"symmetry operation {triplet!r} does not preserve the volume")
    return operation


def _space_group_operations(block: cif.Block) -> Iterable[gemmi.Op]:
    """The operations of the space group, from its Hall symbol, else name, else number.

    Empty if none of them is given, which means P1. If the first one given is unknown, this is an
    error, since the next may denote a different setting. So is a name that contradicts the number.
    """
    hall = _first_value(block, _HALL_TAGS)
    name = _first_value(block, _HERMANN_MAUGUIN_TAGS)
    number = _first_value(block, _NUMBER_TAGS)
    if hall is not None:
        try:
            return gemmi.symops_from_hall(hall)
        except _GEMMI_ERRORS as error:
            raise CrystalError(f"unknown space group, Hall symbol {hall!r}") from error
    if name is None and number is not None:
        is_integer = number.isdecimal() and len(number) <= 3
        known = gemmi.find_spacegroup_by_number(int(number)) if is_integer else None
        name = known.hm if known is not None else f"number {number}"
    if name is not None:
        alpha, gamma = _number(block, "_cell_angle_alpha"), _number(block, "_cell_angle_gamma")
        group = gemmi.find_spacegroup_by_name(name, alpha, gamma)
        if group is None:
            raise CrystalError(f"unknown space group {name!r}")
        if number not in (None, str(group.number)):
            raise CrystalError(f"space group {name!r} is number {group.number}, not {number}")
        return group.operations()
    if any(item.loop and item.loop.tags[0].startswith("_space_group_symop_magn") for item in block):
        raise CrystalError("magnetic symmetry operations are not supported")
    return ()


def _matrices(operations: Iterable[gemmi.Op]) -> np.ndarray:
    unique = dict.fromkeys([gemmi.Op("x,y,z"), *(operation.wrap() for operation in operations)])
    return np.array([operation.float_seitz() for operation in unique])


def _orbit(position: np.ndarray, operations: np.ndarray) -> np.ndarray:
    """The distinct images (k, 3) of one site, not wrapped to [0, 1).

    The file may have rounded a special position such as 1/3, 1/6 or (x, 2x, z). The site is
    therefore first moved exactly onto it: to the mean of all its images that coincide with it.
    """
    rotations, translations = operations[:, :3, :3], operations[:, :3, 3]
    offsets = rotations @ position + translations - position
    offsets -= np.rint(offsets)
    at_site = np.abs(offsets).max(axis=1) < SITE_TOLERANCE
    images = rotations @ (position + offsets[at_site].mean(axis=0)) + translations

    offsets = images[:, None] - images
    offsets -= np.rint(offsets)
    same = np.abs(offsets).max(axis=2) < SITE_TOLERANCE
    return images[same.argmax(axis=1) == np.arange(len(images))]
