"""Read and write a POSCAR.

Format: https://www.vasp.at/wiki/index.php/POSCAR
"""

import re
from itertools import groupby

import gemmi
import numpy as np

from src.data.crystal import Crystal, CrystalError, check_numbers, signed_volume, wrap_coords
from src.data.symbols import ATOMIC_NUMBERS, element_of_symbol

_POTENTIAL = re.compile(r"([A-Za-z]+)(?:_[^/]*)?(?:/.*)?")  # Sr_sv, or Sr_sv/0123 of VASP 6
_MAX_NUM_ATOMS = 10_000


def read_poscar(text: str) -> Crystal:
    """The crystal in a POSCAR or CONTCAR. Velocities and what follows them are ignored.

    Raises:
        CrystalError: if it does not name its elements (as in VASP 4, unless each position has one),
            is cut off, or has more positions than atoms.
    """
    lines = _Lines(text)
    lines.next("comment")
    scale = _leading_floats(lines.next("scale"), 3)
    if len(scale) not in (1, 3) or 0 in scale or (len(scale) == 3 and min(scale) < 0):
        raise CrystalError(
            f"the POSCAR has scale {scale}, but needs one number, or three positive ones"
        )
    lattice = np.array([_floats(lines.next("lattice vector"), 3) for _ in range(3)])
    if scale[0] < 0:  # the volume of the cell
        scale = [(-scale[0] / abs(signed_volume(lattice))) ** (1 / 3)]
    factors = np.array(scale * (3 // len(scale)))  # of Cartesian components
    lattice = lattice * factors

    symbols = _symbols(lines)
    counts: list[int] = []
    while len(counts) < max(1, len(symbols)):
        more = _leading_integers(lines.next("number of atoms"))
        if not more:
            raise CrystalError("the POSCAR has no number of atoms for each element")
        counts += more
    if symbols and len(symbols) != len(counts):
        raise CrystalError(f"the POSCAR has {len(symbols)} elements, but {len(counts)} numbers")
    if not 0 < sum(counts) <= _MAX_NUM_ATOMS or min(counts) < 0:
        raise CrystalError(f"the POSCAR has {sum(counts)} atoms")

    mode = lines.next("coordinate mode")
    has_flags = mode[:1] in ("S", "s")
    if has_flags:
        mode = lines.next("coordinate mode")
    if not mode[:1].isalpha():
        raise CrystalError(f"the POSCAR has {mode[:40]!r} where Direct or Cartesian is expected")
    coords, named = _positions(lines, sum(counts), has_flags)
    listed = [element_of_symbol(s) for s, n in zip(symbols, counts, strict=False) for _ in range(n)]
    if not listed:
        if None in named:
            raise CrystalError(
                "the POSCAR does not say which elements: give their symbols in line 6"
            )
        listed = [number for number in named if number is not None]
    for index, (number, other) in enumerate(zip(listed, named, strict=True)):
        if other is not None and other != number:
            first, second = (gemmi.Element(z).name for z in (number, other))
            raise CrystalError(f"atom {index} is {first} by line 6, but {second} by its own line")

    if mode[0] in "CcKk":
        coords = (coords * factors) @ np.linalg.inv(lattice)
    crystal = Crystal(lattice, np.array(listed, dtype=np.int64), wrap_coords(coords))
    check_numbers(crystal)
    return crystal


def write_poscar(crystal: Crystal, comment: str) -> str:
    """The text of a POSCAR, with the atoms in their order and all digits of a float64.

    VASP needs a right-handed lattice. A left-handed one is inverted together with the coordinates,
    so that no atom moves, and the crystal is not mirrored.

    Raises:
        CrystalError: if the lattice has no volume, or an atomic number is not that of an element.
    """
    if signed_volume(crystal.lattice) < 0:
        inverted = wrap_coords(-crystal.frac_coords)
        crystal = Crystal(-crystal.lattice, crystal.atom_types, inverted)
    numbers = crystal.atom_types.tolist()
    if not all(1 <= number <= 118 for number in numbers):
        raise CrystalError("an atomic number is not that of an element")
    runs = [(number, len(list(run))) for number, run in groupby(numbers)]
    lines = [
        " ".join(comment.split()) or "crystal",
        "1.0",
        *(" ".join(map(repr, row)) for row in crystal.lattice.astype(float).tolist()),
        " ".join(gemmi.Element(number).name for number, _ in runs),
        " ".join(str(count) for _, count in runs),
        "Direct",
        *(" ".join(map(repr, row)) for row in crystal.frac_coords.astype(float).tolist()),
    ]
    return "\n".join(lines) + "\n"


class _Lines:
    """The lines of a file, one after another."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._next = 0

    def next(self, expected: str) -> str:
        line = self.peek()
        if line is None:
            raise CrystalError(f"the POSCAR ends where a {expected} is expected")
        self._next += 1
        return line

    def peek(self) -> str | None:
        return self._lines[self._next].strip() if self._next < len(self._lines) else None

    def begins_another(self) -> bool:
        """Whether the next lines are the comment, scale, lattice and elements of a POSCAR.

        After the positions, VASP writes the velocities of the lattice in the same form, but with
        the lattice itself where a POSCAR has the elements.
        """
        while self.peek() == "":
            self._next += 1
        following = self._lines[self._next + 1 : self._next + 6]
        sizes = [len(_leading_floats(line, 3)) for line in following]
        return sizes[:4] == [1, 3, 3, 3] and len(sizes) == 5 and sizes[4] < 3


def _symbols(lines: _Lines) -> list[str]:
    """The elements, in one or several lines; empty if the next line has numbers (VASP 4)."""
    symbols: list[str] = []
    while (line := lines.peek()) is not None and line and not line[0].isdigit():
        for word in line.split():
            found = _POTENTIAL.fullmatch(word)
            if word[0] in "!#":
                break
            if found is None or found[1] not in ATOMIC_NUMBERS:
                raise CrystalError(f"{word[:40]!r} in the POSCAR is not an element")
            symbols.append(found[1])
        lines.next("element")
    return symbols


def _positions(lines: _Lines, number: int, has_flags: bool) -> tuple[np.ndarray, list[int | None]]:
    """Coordinates (n, 3), and the elements that follow them, if any."""
    coords: list[list[float]] = []
    named: list[int | None] = []
    for _ in range(number):
        words = lines.next("position").split()
        coords.append(_floats(" ".join(words[:3]), 3))
        rest = words[3:]
        if has_flags and len(rest) >= 3:
            rest = rest[3:]
        element = re.match(r"[A-Za-z]{1,2}(?![a-z])", rest[0]) if rest else None
        named.append(ATOMIC_NUMBERS.get(element[0]) if element and len(rest) == 1 else None)
    following = lines.peek()
    if following and len(_leading_floats(following, 3)) == 3:
        raise CrystalError(f"the POSCAR has more positions than the {number} atoms that it says")
    if lines.begins_another():
        raise CrystalError("the file has several POSCARs after one another: write a file for each")
    return np.array(coords), named


def _floats(line: str, number: int) -> list[float]:
    values = _leading_floats(line, number)
    if len(values) != number:
        raise CrystalError(f"{line[:60]!r} in the POSCAR does not have {number} numbers")
    return values


def _leading_floats(line: str, at_most: int) -> list[float]:
    values: list[float] = []
    for word in line.split()[:at_most]:
        try:
            values.append(float(word.lower().replace("d", "e")))
        except ValueError:
            break
    return values


def _leading_integers(line: str) -> list[int]:
    values: list[int] = []
    for word in line.split():
        if not (word.isascii() and word.isdecimal() and len(word) < 10):
            break
        values.append(int(word))
    return values
