"""Read and write a crystal as CIF text.

This is the only module that knows the format. Reading is fast (gemmi parses the text, spglib
reduces the cell, and a few small numpy calls do the rest) and strict: text that does not describe
one complete, ordered crystal is rejected with a reason, and nothing is repaired by guessing. A file
is also compared with itself: its operations with one another and with the declared space group
(`src.data.cif_symmetry`), and its atoms with the formula and other figures (`src.data.cif_claims`).

What does not depend on the format (`Crystal`, `check_crystal`, `niggli_reduce`, `orient`) is
implemented in `src.data.crystal` and can be imported from here as well.
"""

import logging
import math
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import gemmi
import numpy as np
from gemmi import cif

from src.data.cif_claims import Claims, add_claims_of_sites, read_claims
from src.data.cif_symmetry import Reading, Symmetry, read_symmetry
from src.data.cif_tags import UNKNOWN, Tags, normal_name
from src.data.crystal import (
    MAX_LATTICE_ENTRY,
    MIN_VOLUME,
    OCCUPANCY_TOLERANCE,
    SPGLIB_ERRORS,
    Crystal,
    CrystalError,
    check_crystal,
    closest_contact,
    lattice_from_parameters,
    lengths_and_cosines,
    niggli_reduce,
    orient,
    signed_volume,
    wrap_coords,
)
from src.data.operations import MAX_SYMMETRY_OPERATIONS, Operations
from src.data.symbols import element_of_label, element_of_type, leading_letter

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

log = logging.getLogger(__name__)

# Limits the time and memory that malicious text can use. Counts the atoms in the cell before
# the coinciding images of special positions are merged.
MAX_NUM_ATOMS = 10_000

# Fractional. With coordinates rounded to three decimals (0.333, 0.667), images of an atom on a
# special position are up to 0.0015 apart. Two distinct, fully occupied sites are never that close.
SITE_TOLERANCE = 2e-3

_CELL_TAGS = (
    "_cell_length_a", "_cell_length_b", "_cell_length_c",
    "_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma",
)  # fmt: skip
_TAG_OF_NAME = {tag.lower(): tag for tag in _CELL_TAGS}
_CELL_NAMES = tuple(_TAG_OF_NAME)
_FRACT_TAGS = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")

# Atoms closer than this times the sum of their covalent radii overlap. Atoms of one element repel
# each other, except for a few that form multiple bonds.
_OVERLAP = 0.65
_OVERLAP_OF_EQUAL = 0.9
_MULTIPLE_BONDS = (6, 7, 15, 16, 24, 42, 43, 44, 45, 74, 75, 76)

_MAX_NOTES = 10  # logged per process
_num_notes = count()


def read_cif(text: str, niggli: bool = True) -> Crystal:
    """Read the crystal in CIF text and apply its symmetry operations.

    The operations are those listed in the text, which must form a group and agree with the declared
    name, number, setting code and Hall symbol. If none are listed, they follow from these. Without
    any of them, the space group is P1. If a name or number allows several settings, the cell
    decides between hexagonal and rhombohedral axes. Of two origin choices (gemmi takes the second
    if it reads a CIF, and the first if it is asked for a name), the one in which the atoms fit the
    formula and do not overlap is taken; if that leaves both, the text is rejected. Coinciding
    images of an atom on a special position are merged; the sites of a P1 file are never merged.

    The atoms must agree with the formula, `_cell_formula_units_Z`, `_cell_volume`, densities,
    `_exptl_crystal_F_000` and the multiplicities of the sites, if these are given. If the symmetry
    contradicts itself, but these confirm exactly one reading of it, this one is used, and a warning
    is logged.

    Magnetic symmetry is read as its effect on the positions; modulated structures are rejected.

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
            or symmetry, a contradiction, or more than `MAX_NUM_ATOMS` atoms. Overlapping atoms are
            not detected here but by `check_crystal`.
    """
    block, tags = _block_with_atoms(text)
    parameters = [_number(tags, name) for name in _CELL_NAMES]
    lattice = lattice_from_parameters(parameters[:3], parameters[3:])
    volume = float(lattice[0, 0] * lattice[1, 1] * lattice[2, 2])  # a lattice in this orientation
    claims = read_claims(tags, volume)
    atom_types, frac_coords, has_isotopes = _read_sites(tags, claims)
    add_claims_of_sites(claims, tags, atom_types.tolist())
    symmetry = read_symmetry(tags, lattice)

    def contradiction(crystal: Crystal) -> str:
        return claims.contradiction(crystal.atom_types, volume, has_isotopes)

    sites = Crystal(lattice, atom_types, frac_coords)
    if len(symmetry.readings) == 1 and not symmetry.conflict:
        crystal = _expand(sites, symmetry.readings[0].operations)
        if reason := contradiction(crystal):
            raise CrystalError(reason)
        _check_origin(sites, crystal, symmetry, contradiction)
    else:
        crystal = _choose(sites, symmetry, contradiction, claims, f"data_{block.name}")
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


def _block_with_atoms(text: str) -> tuple[cif.Block, Tags]:
    if not isinstance(text, str) or not text.strip():
        raise CrystalError("empty CIF")
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # a byte order mark
    for block in parse_cif(text):
        if has_atoms(block):
            return block, Tags(block)
    raise CrystalError("no atoms with fractional coordinates")


def parse_cif(text: str) -> cif.Document:
    """The data blocks of CIF text. Letters beyond ASCII, as in names of authors, do no harm.

    Raises:
        CrystalError: if it is not valid CIF.
    """
    try:
        return cif.read_string(text.encode())
    except (ValueError, RuntimeError) as error:
        if not (text.isascii() or isinstance(error, UnicodeError)):
            with suppress(ValueError, RuntimeError):  # gemmi allows them only in quotes
                return cif.read_string(text.encode("ascii", "replace"))
        raise CrystalError(f"not valid CIF: {' '.join(str(error).split())}") from error


def has_atoms(block: cif.Block) -> bool:
    """Whether a data block has atoms with fractional coordinates."""
    if len(block.find_values(_FRACT_TAGS[0])) > 0:
        return True
    return any(
        normal_name(tag) == _FRACT_TAGS[0] and len(block.find_values(tag)) > 0
        for item in block
        for tag in (item.loop.tags if item.loop is not None else (item.pair or [])[:1])
    )


def has_site_table(block: cif.Block) -> bool:
    """Whether a data block has tags of fractional coordinates, also of a table without rows."""
    return has_atoms(block) or any(
        normal_name(tag) == _FRACT_TAGS[0]
        for item in block
        if item.loop is not None
        for tag in item.loop.tags
    )


def _number(tags: Tags, name: str) -> float:
    text = tags.raw(name)
    if text is None:
        raise CrystalError(f"{_TAG_OF_NAME.get(name, name)} is missing")
    number = cif.as_number(text)  # ignores a standard uncertainty; NaN if not a number
    if not math.isfinite(number):
        raise CrystalError(f"{_TAG_OF_NAME.get(name, name)} is {text}, not a number")
    return number


def _column(tags: Tags, name: str, num_rows: int) -> list[str]:
    column = tags.column(name)
    if len(column) != num_rows:
        raise CrystalError(f"{name} has {len(column)} values for {num_rows} atoms")
    return column


def _read_sites(tags: Tags, claims: Claims) -> tuple[np.ndarray, np.ndarray, bool]:
    """Atomic numbers (n,), coordinates (n, 3) of the sites, and whether some are deuterium."""
    num_sites = len(tags.column(_FRACT_TAGS[0]))
    if num_sites > MAX_NUM_ATOMS:
        raise CrystalError(f"{num_sites} sites: more than {MAX_NUM_ATOMS} atoms")
    atom_types, has_isotopes = _read_elements(tags, claims, num_sites)

    columns = []
    for name in _FRACT_TAGS:
        column = _column(tags, name, num_sites)
        numbers = [cif.as_number(text) for text in column]
        if not all(map(math.isfinite, numbers)):
            bad = next(i for i, number in enumerate(numbers) if not math.isfinite(number))
            raise CrystalError(f"{name} of atom {bad} is {column[bad]}, not a number")
        columns.append(numbers)

    for index, text in enumerate(tags.column("_atom_site_occupancy")):
        # By CIF's definition, the default for a missing or unknown occupancy is 1
        if text != "1" and text not in UNKNOWN:
            occupancy = cif.as_number(text)
            if not abs(occupancy - 1) <= OCCUPANCY_TOLERANCE:
                raise CrystalError(f"atom {index} has occupancy {text}: not an ordered crystal")
    return np.array(atom_types, dtype=np.int64), np.array(columns).T, has_isotopes


def _read_elements(tags: Tags, claims: Claims, num_sites: int) -> tuple[list[int], bool]:
    """The atomic numbers of the sites, and whether some are deuterium."""
    known = claims.formula or {}
    types, labels = tags.column("_atom_site_type_symbol"), tags.column("_atom_site_label")
    if not types:
        labels = [cif.as_string(label) for label in _column(tags, "_atom_site_label", num_sites)]
        lone = set(map(leading_letter, labels))
        numbers = [element_of_label(label, known, lone) for label in labels]
        return numbers, any(
            label.startswith("D") and n == 1 for label, n in zip(labels, numbers, strict=False)
        )
    if len(types) != num_sites:
        raise CrystalError(f"{len(types)} type symbols for {num_sites} atoms")
    label_of = labels if len(labels) == num_sites else [None] * num_sites
    seen: dict[str, int] = {}
    found = []
    for raw, label in zip(types, label_of, strict=True):
        number = seen.get(raw)
        if number is None:
            symbol = raw if raw in UNKNOWN else cif.as_string(raw).strip()
            number = element_of_type(symbol, label and cif.as_string(label), known)
            if not symbol[-1:].isdigit():  # the meaning of a number depends on the label
                seen[raw] = number
        found.append(number)
    return found, any(n == 1 and raw.strip("'\"").startswith("D") for raw, n in seen.items())


# Symmetry


def _expand(sites: Crystal, operations: Operations) -> Crystal:
    """Apply symmetry operations to sites.

    Raises:
        CrystalError: if there are too many atoms, or two sites share a position.
    """
    atom_types, frac_coords = sites.atom_types, sites.frac_coords
    if len(atom_types) * len(operations) > MAX_NUM_ATOMS:
        raise CrystalError(
            f"{len(atom_types)} sites under {len(operations)} symmetry operations: "
            f"more than {MAX_NUM_ATOMS} atoms"
        )
    if len(operations) > 1:
        rotations, translations = operations.rotations.astype(float), operations.translations
        orbits = [_orbit(position, rotations, translations) for position in frac_coords]
        atom_types = np.repeat(atom_types, [len(orbit) for orbit in orbits])
        frac_coords = np.concatenate(orbits)
    frac_coords = wrap_coords(frac_coords)

    # A cheap check for duplicate sites. `check_crystal` finds atoms that are merely too close.
    if len(set(map(tuple, (frac_coords.round(3) % 1).tolist()))) < len(frac_coords):
        raise CrystalError("two sites share one position")
    return Crystal(sites.lattice, atom_types, frac_coords)


def _choose(
    sites: Crystal,
    symmetry: Symmetry,
    contradiction: Callable[[Crystal], str],
    claims: Claims,
    where: str,
) -> Crystal:
    """The crystal of the only reading of the symmetry that the atoms confirm.

    Raises:
        CrystalError: if they confirm none or several.
    """
    if symmetry.conflict and (whole := _whole_cell(sites, symmetry)) is not None:
        if reason := contradiction(whole):
            raise CrystalError(reason)
        return whole
    possible: list[tuple[Reading, Crystal]] = []
    reasons: list[str] = []
    for reading in symmetry.readings:
        try:
            crystal = _expand(sites, reading.operations)
            reason = contradiction(crystal)
        except CrystalError as error:
            reason = str(error)
        if reason:
            reasons.append(f"{reading.name}: {reason}")
        else:
            possible.append((reading, crystal))
    if symmetry.conflict and not claims.fix_the_content:
        raise CrystalError(symmetry.conflict)
    if len(possible) > 1:
        apart = [(reading, crystal) for reading, crystal in possible if not _overlap(crystal)]
        possible = apart or possible
    if not possible:
        conflict = [symmetry.conflict] if symmetry.conflict else []
        raise CrystalError("; ".join([*conflict, *reasons]))
    if len(possible) > 1:
        names = " and ".join(reading.name for reading, _ in possible)
        conflict_text = f"{symmetry.conflict}: " if symmetry.conflict else ""
        raise CrystalError(f"{conflict_text}nothing decides between {names}")
    ((reading, crystal),) = possible
    because = symmetry.conflict or "the file leaves several settings open"
    _note(f"{where}: {because}; read with {reading.name}, which alone fits the atoms")
    return crystal


def _check_origin(
    sites: Crystal,
    crystal: Crystal,
    symmetry: Symmetry,
    contradiction: Callable[[Crystal], str],
) -> None:
    """Refuse atoms that overlap with the origin that the file names, but not with the other."""
    if not symmetry.excluded or not _overlap(crystal):
        return
    for other in symmetry.excluded:
        try:
            placed = _expand(sites, other.operations)
        except CrystalError:
            continue
        if not (contradiction(placed) or _overlap(placed)):
            raise CrystalError(
                f"with {symmetry.readings[0].name}, as the file says, atoms overlap, but not with "
                f"{other.name}"
            )


def _whole_cell(sites: Crystal, symmetry: Symmetry) -> Crystal | None:
    """The crystal as listed, if a declared group finds no other atoms, so that nothing is open."""
    first = min(symmetry.readings, key=lambda reading: len(reading.operations))
    if len(symmetry.readings) < 2 or sites.num_atoms * len(first.operations) > 1000:
        return None
    listed = _expand(sites, first.operations)
    for reading in symmetry.readings:
        if reading is first:
            continue
        images = (
            np.einsum("iab,nb->ina", reading.operations.rotations, listed.frac_coords)
            + reading.operations.translations[:, None]
        )
        for image in images:
            offsets = image[:, None] - listed.frac_coords
            offsets -= np.rint(offsets)
            same = np.abs(offsets).max(axis=2) < SITE_TOLERANCE
            same &= listed.atom_types[:, None] == listed.atom_types
            if not same.any(axis=1).all():
                return None
    return listed


def _overlap(crystal: Crystal) -> bool:
    """Whether two atoms are closer than any chemical bond between them."""
    for i, j, distance in closest_contact(crystal):
        first, second = (int(crystal.atom_types[k]) for k in (i, j))
        radii = sum(gemmi.Element(z).covalent_r for z in (first, second))
        is_equal = first == second and first not in _MULTIPLE_BONDS
        if distance < radii * (_OVERLAP_OF_EQUAL if is_equal else _OVERLAP):
            return True
    return False


def _note(message: str) -> None:
    number = next(_num_notes)
    if number < _MAX_NOTES:
        log.warning("%s", message)
    if number == _MAX_NOTES:
        log.warning("More crystals were read in the only way that fits their atoms")


def _orbit(position: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """The distinct images (k, 3) of one site, not wrapped to [0, 1).

    The file may have rounded a special position such as 1/3, 1/6 or (x, 2x, z). The site is
    therefore first moved exactly onto it: to the mean of all its images that coincide with it.
    """
    offsets = rotations @ position + translations - position
    offsets -= np.rint(offsets)
    at_site = np.abs(offsets).max(axis=1) < SITE_TOLERANCE
    images = rotations @ (position + offsets[at_site].mean(axis=0)) + translations

    offsets = images[:, None] - images
    offsets -= np.rint(offsets)
    same = np.abs(offsets).max(axis=2) < SITE_TOLERANCE
    return images[same.argmax(axis=1) == np.arange(len(images))]
