"""Crystals as CIF text and as plain arrays: read, check, reduce, write.

This is the only module that knows the format. Reading is built for speed (gemmi parses, spglib
reduces, a handful of small numpy calls do the rest) and for honesty: text that does not
describe one complete, ordered crystal is refused with a reason, never repaired by guessing.
"""

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import spglib
from gemmi import cif

from src.utils.errors import UserError

# The largest space groups have 192 operations in their conventional cell.
MAX_SYMMETRY_OPERATIONS = 192

# Bounds the time and memory that hostile text can cost: atoms of the cell, counted before the
# images of special positions are merged.
MAX_NUM_ATOMS = 10_000

# Fractional. Coordinates of three decimals (0.333, 0.667) put the images of a special position
# up to three half-units of the last place apart, 0.0015. Two full atoms are never this close.
SITE_TOLERANCE = 2e-3

OCCUPANCY_TOLERANCE = 1e-3

# Å^3 and Å: far below any atom's volume, far above any crystal's cell. Between them the numbers
# below can neither vanish nor overflow.
MIN_VOLUME = 1e-3
MAX_LATTICE_ENTRY = 1e4

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

# A failure of spglib is None in old versions, and an exception in new ones, as it is set up.
SPGLIB_ERRORS = (spglib.SpglibError,) if hasattr(spglib, "SpglibError") else ()

# gemmi cuts its message short, at times within a character.
_GEMMI_ERRORS = (RuntimeError, UnicodeDecodeError)

_LONE_POINT = re.compile(r"(?<!\d)\.(?!\d)")  # gemmi takes it for zero

_HOME_CELL = np.zeros((1, 3))
_NEIGHBOR_CELLS = np.stack(np.meshgrid(*3 * [[-1.0, 0.0, 1.0]]), axis=-1).reshape(27, 3)


class CrystalError(UserError):
    """A crystal that cannot be used; ``str(error)`` is the reason in one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """One unit cell and the n atoms in it.

    Attributes:
        lattice: (3, 3) float64, Å; the rows are a, b and c.
        atom_types: (n,) int64, atomic numbers.
        frac_coords: (n, 3) float64, in [0, 1).
    """

    lattice: np.ndarray
    atom_types: np.ndarray
    frac_coords: np.ndarray

    @property
    def num_atoms(self) -> int:
        return len(self.atom_types)


def read_cif(text: str, niggli: bool = True) -> Crystal:
    """The crystal that CIF text describes, its symmetry operations applied.

    The operations are those that the text lists, else those of its Hall symbol, its
    Hermann-Mauguin name or its space-group number, else P1. A name or number that allows two
    settings means hexagonal or rhombohedral axes as the cell angles say, and origin choice 1
    (so do gemmi and pymatgen). Images that fall together on a special position become
    one atom; the sites of a P1 file are never merged.

    Of several data blocks the first that has atom coordinates is read. Unlike pymatgen, which
    goes on to the next block when this one is bad, a bad one is an error: what follows may be
    another crystal.

    The lattice has pymatgen's orientation (``Lattice.from_parameters``): c along z, a in the
    xz plane, right-handed.

    Args:
        text: the content of a CIF file.
        niggli: return the Niggli-reduced cell instead of the cell as given. A centred cell is
            not made primitive by this, so the atoms stay as many.

    Raises:
        CrystalError: the text is no CIF, has no cell, no atoms, an unknown element, an
            incomplete occupancy, two sites at one position, unreadable numbers or symmetry, or
            more than `MAX_NUM_ATOMS` atoms. Overlapping atoms are left to `check_crystal`.
    """
    block = _block_with_atoms(text)
    parameters = [_number(block, tag) for tag in _CELL_TAGS]
    lattice = _lattice_from_parameters(parameters[:3], parameters[3:])
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
    frac_coords = _wrap(frac_coords)

    # Cheap and enough for sites that share a position in so many words; near misses are overlaps.
    if len(set(map(tuple, (frac_coords.round(3) % 1).tolist()))) < len(frac_coords):
        raise CrystalError("two sites share one position")
    crystal = Crystal(lattice, atom_types, frac_coords)
    return niggli_reduce(crystal) if niggli else crystal


def check_crystal(
    crystal: Crystal,
    max_num_atoms: int | None = None,
    max_atomic_number: int = 99,
    min_distance: float = 0.5,
) -> None:
    """Refuse a crystal that no model should learn from.

    Distances are between any two atoms, their periodic images and an atom's own images
    included. The time grows with the square of the number of atoms, so set `max_num_atoms`.

    Args:
        crystal: any cell, reduced or not.
        max_num_atoms: no limit when None.
        max_atomic_number: the heaviest element allowed.
        min_distance: the closest that two atoms may come, Å.

    Raises:
        CrystalError: no or too many atoms, an element out of range, a coordinate or lattice
            entry that is NaN or infinite, a cell without volume, or overlapping atoms.
    """
    num_atoms = crystal.num_atoms
    if num_atoms == 0:
        raise CrystalError("no atoms")
    if max_num_atoms is not None and num_atoms > max_num_atoms:
        raise CrystalError(f"{num_atoms} atoms: more than {max_num_atoms}")
    lightest, heaviest = int(crystal.atom_types.min()), int(crystal.atom_types.max())
    if lightest < 1 or heaviest > max_atomic_number:
        outside = lightest if lightest < 1 else heaviest
        raise CrystalError(f"atomic number {outside} is outside 1 to {max_atomic_number}")
    if not np.isfinite(crystal.frac_coords).all():
        raise CrystalError("a fractional coordinate is NaN or infinite")
    _signed_volume(crystal.lattice)
    if pair := _find_overlap(crystal, min_distance):
        i, j, distance = pair
        atoms = f"atoms {i} and {j}" if i != j else f"atom {i} and its own periodic image"
        raise CrystalError(f"{atoms} are {distance:.3f} Å apart, closer than {min_distance} Å")


def niggli_reduce(crystal: Crystal) -> Crystal:
    """The same crystal in its Niggli cell, in pymatgen's orientation (see `read_cif`).

    The atoms keep their order, and the crystal keeps its handedness: a left-handed basis is
    inverted together with the coordinates, which leaves every atom where it is.

    Raises:
        CrystalError: the lattice is not finite or has no volume, or spglib finds no reduced
            cell (there is no fallback: such cells are extremely skewed or tiny).
    """
    lattice = crystal.lattice
    try:
        reduced = spglib.niggli_reduce(math.copysign(1.0, _signed_volume(lattice)) * lattice)
    except SPGLIB_ERRORS:
        reduced = None
    if reduced is None:
        raise CrystalError("spglib finds no Niggli-reduced cell")
    if np.linalg.det(reduced) < 0:
        reduced = -reduced

    # A position is frac_coords @ lattice in either basis, hence the matrix from old to new
    # coordinates. Both bases span one lattice, so that its entries are integers.
    change = lattice @ np.linalg.inv(reduced)
    integers = np.rint(change)
    if np.abs(change - integers).max() > 1e-3 or abs(round(np.linalg.det(integers))) != 1:
        raise CrystalError("the Niggli-reduced cell does not span the lattice")
    lengths, cosines = _lengths_and_cosines(reduced)
    return Crystal(
        lattice=_canonical_lattice(lengths, cosines),
        atom_types=crystal.atom_types,
        frac_coords=_wrap(crystal.frac_coords @ integers),
    )


def orient(crystal: Crystal) -> Crystal:
    """The same crystal and cell in pymatgen's orientation (see `read_cif`), right-handed.

    A left-handed basis is inverted together with the coordinates, as `niggli_reduce` does it.

    Raises:
        CrystalError: the lattice is not finite or has no volume.
    """
    lattice = crystal.lattice
    right_handed = _signed_volume(lattice) > 0
    if right_handed and not np.any((lattice[0, 1], lattice[2, 0], lattice[2, 1])):
        return crystal
    frac_coords = crystal.frac_coords if right_handed else _wrap(-crystal.frac_coords)
    lengths, cosines = _lengths_and_cosines(lattice)
    return Crystal(_canonical_lattice(lengths, cosines), crystal.atom_types, frac_coords)


def write_cif(crystal: Crystal, name: str) -> str:
    """P1 CIF text that reads back as the same cell parameters and coordinates.

    Numbers carry all digits of a float64. A CIF knows lengths and angles, not an orientation:
    `read_cif` returns the lattice in pymatgen's.

    Args:
        crystal: the crystal; a left-handed lattice is written by its inverse, with the
            coordinates, so that the crystal is not mirrored.
        name: of the data block; what CIF does not allow in it becomes an underscore.

    Raises:
        CrystalError: a lattice without volume, or an atomic number that is no element's.
    """
    symbols = [gemmi.Element(int(number)).name for number in crystal.atom_types]
    if "X" in symbols:
        raise CrystalError(f"atomic number {crystal.atom_types[symbols.index('X')]} is no element")
    right_handed = _signed_volume(crystal.lattice) > 0
    frac_coords = crystal.frac_coords if right_handed else _wrap(-crystal.frac_coords)
    lengths, cosines = _lengths_and_cosines(crystal.lattice)
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


# --- the parts of a data block ---------------------------------------------------------------


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
    """The value of the first tag that has one, without quotes."""
    for tag in tags:
        value = block.find_value(tag)
        if value is not None and value not in _UNKNOWN:
            return cif.as_string(value).strip()
    return None


def _number(block: cif.Block, tag: str) -> float:
    text = block.find_value(tag)
    if text is None:
        raise CrystalError(f"{tag} is missing")
    number = cif.as_number(text)  # drops a standard uncertainty; NaN for what is no number
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
        # CIF's default, for an absent or unknown value too, is a full site
        if text != "1" and text not in _UNKNOWN:
            occupancy = cif.as_number(text)
            if not abs(occupancy - 1) <= OCCUPANCY_TOLERANCE:
                raise CrystalError(f"atom {index} has occupancy {text}: not an ordered crystal")
    return atom_types, np.array(columns).T


@functools.lru_cache(maxsize=4096)
def _atomic_number(symbol: str) -> int:
    """Of a type symbol or label such as Fe, Fe3+, Fe1 or D.

    All leading letters have to be the element. A prefix would do for more labels, and would
    read water (Wat) as tungsten and a vacancy (Va) as vanadium.
    """
    symbol = cif.as_string(symbol)
    letters = re.match(r"[A-Za-z]*", symbol).group()  # type: ignore[union-attr]
    number = 1 if letters == "T" else gemmi.Element(letters).atomic_number
    if number == 0:
        raise CrystalError(f"{symbol!r} is no element")
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
    if _LONE_POINT.search(triplet):
        raise CrystalError(f"symmetry operation {triplet!r} cannot be read")
    if abs(operation.det_rot()) != gemmi.Op.DEN**3:
        raise CrystalError(f"symmetry operation {triplet!r} does not preserve the volume")
    return operation


def _space_group_operations(block: cif.Block) -> Iterable[gemmi.Op]:
    """Of the first of Hall symbol, Hermann-Mauguin name and number that is given; none for P1.

    A given one that is unknown is an error: the next may stand for another setting. So is a name
    that is not the number's.
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
        is_one = number.isdecimal() and len(number) <= 3
        known = gemmi.find_spacegroup_by_number(int(number)) if is_one else None
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
    """The distinct images (k, 3) of one site, some outside of [0, 1).

    A site on a special position is first moved onto it, to the mean of the images that fall
    on the site: the position that the file rounded, whether it is 1/3, 1/6 or (x, 2x, z).
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


# --- geometry --------------------------------------------------------------------------------


def _wrap(frac_coords: np.ndarray) -> np.ndarray:
    wrapped = frac_coords - np.floor(frac_coords)
    wrapped[wrapped == 1.0] = 0.0  # -1e-17 - floor(-1e-17) rounds to 1
    return wrapped


def _lattice_from_parameters(lengths: Sequence[float], angles: Sequence[float]) -> np.ndarray:
    """From lengths in Å and angles in degrees, checked."""
    if min(lengths) <= 0:
        raise CrystalError(f"cell length {min(lengths)} Å is not positive")
    for angle in angles:
        if not 0 < angle < 180:
            raise CrystalError(f"cell angle {angle} is not between 0 and 180 degrees")
    return _canonical_lattice(lengths, [math.cos(math.radians(angle)) for angle in angles])


def _canonical_lattice(lengths: Sequence[float], cosines: Sequence[float]) -> np.ndarray:
    """(3, 3) right-handed lattice with c along z and a in the xz plane."""
    a, b, c = lengths
    cos_alpha, cos_beta, cos_gamma = cosines
    # The square of the volume of the cell with unit lengths: the determinant of its metric
    unit = 1 - cos_alpha**2 - cos_beta**2 - cos_gamma**2 + 2 * cos_alpha * cos_beta * cos_gamma
    if unit < 1e-12:  # a flat cell, or none; above, the division below is safe
        raise CrystalError("no cell has these three angles")
    sin_beta = math.sqrt(1 - cos_beta**2)
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [
                b * (cos_gamma - cos_alpha * cos_beta) / sin_beta,
                b * math.sqrt(unit) / sin_beta,
                b * cos_alpha,
            ],
            [0.0, 0.0, c],
        ]
    )


def _lengths_and_cosines(lattice: np.ndarray) -> tuple[list[float], list[float]]:
    """Lengths (a, b, c) in Å and the cosines of (alpha, beta, gamma)."""
    (aa, ab, ac), (_, bb, bc), (_, _, cc) = (lattice @ lattice.T).tolist()
    a, b, c = math.sqrt(aa), math.sqrt(bb), math.sqrt(cc)
    return [a, b, c], [bc / (b * c), ac / (a * c), ab / (a * b)]


def _signed_volume(lattice: np.ndarray) -> float:
    """Å^3, positive for a right-handed lattice; refuses what is not finite, huge or flat."""
    if not np.abs(lattice).max() < MAX_LATTICE_ENTRY:
        raise CrystalError(f"a lattice entry is not a number below {MAX_LATTICE_ENTRY:g} Å")
    volume = float(np.linalg.det(lattice))
    if abs(volume) < MIN_VOLUME:
        raise CrystalError(f"the cell has no volume ({abs(volume):.1e} Å^3)")
    return volume


def _find_overlap(crystal: Crystal, cutoff: float) -> tuple[int, int, float] | None:
    """Two atoms closer than the cutoff, and their distance; i == j for an atom's own image."""
    # Points closer than the cutoff differ by less than cutoff / spacing along each axis. Where
    # that is below 1/2, the image nearest along each axis is the only one that can be so close,
    # and no lattice vector is as short as the cutoff. This holds for any cell.
    spacings = 1 / np.linalg.norm(np.linalg.inv(crystal.lattice), axis=0)
    images = _HOME_CELL
    if spacings.min() <= 2 * cutoff:
        # In a Niggli cell a is the shortest lattice vector and abc <= sqrt(2) volume, so that
        # no spacing is below a / sqrt(2): the images to look at are at most
        # 1/2 + sqrt(2) < 2 cells away.
        crystal = niggli_reduce(crystal)
        shortest = float(np.linalg.norm(crystal.lattice, axis=1).min())
        if shortest < cutoff:
            return 0, 0, shortest
        images = _NEIGHBOR_CELLS @ crystal.lattice

    frac_coords, num_atoms = crystal.frac_coords, crystal.num_atoms
    step = max(1, 2**16 // (num_atoms * len(images)))  # rows at a time, to bound the memory
    for start in range(0, num_atoms, step):
        offsets = frac_coords[start : start + step, None] - frac_coords
        offsets -= np.rint(offsets)
        vectors = (offsets @ crystal.lattice)[:, :, None] + images
        squares = np.einsum("ijkx,ijkx->ijk", vectors, vectors).min(axis=2)
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf  # an atom and itself
        if squares.min() < cutoff**2:
            i, j = np.unravel_index(squares.argmin(), squares.shape)
            return start + int(i), int(j), math.sqrt(squares[i, j])
    return None
