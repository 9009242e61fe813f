"""Symmetry operations as exact integers: parse and compare them, check that they are a group."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import gemmi
import numpy as np

from src.data.crystal import SPGLIB_ERRORS, CrystalError

# The largest space groups have 192 operations in their conventional cell.
MAX_SYMMETRY_OPERATIONS = 192

# Translations are multiples of 1/GRID: 1/2 to 1/10, 1/12, 1/16, 1/24 and others are exact.
GRID = 5040

_STRAIN = 0.03  # relative error allowed in the metric of the cell: about 1.5 % of a length

_TERM = re.compile(r"([+-]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?\*?)?([xyz]?)", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Operations:
    """Symmetry operations on fractional coordinates, without duplicates, the identity first.

    Attributes:
        rotations: (m, 3, 3) int64.
        shifts: (m, 3) int64, in [0, `GRID`): the translations times `GRID`.
        codes: a number for each operation, in no order.
    """

    rotations: np.ndarray
    shifts: np.ndarray
    codes: frozenset[int]

    def __len__(self) -> int:
        return len(self.rotations)

    @property
    def translations(self) -> np.ndarray:
        """(m, 3) float64, in [0, 1)."""
        return self.shifts / GRID

    @classmethod
    def of(cls, rotations: np.ndarray, shifts: np.ndarray) -> Self:
        """Remove duplicates, and add the identity, which some files do not list."""
        rotations = np.concatenate([np.eye(3, dtype=np.int64)[None], rotations])
        shifts = np.concatenate([np.zeros((1, 3), np.int64), shifts]) % GRID
        codes = _codes(rotations, shifts)
        _, first = np.unique(codes, return_index=True)
        first.sort()
        return cls(rotations[first], shifts[first], frozenset(codes[first].tolist()))


@functools.lru_cache(maxsize=256)
def parse_operations(triplets: tuple[str, ...]) -> Operations:
    """The operations in texts such as `-y,x-y,z+1/3`.

    Raises:
        CrystalError: if one cannot be read or does not keep volumes, or if there are more than
            `MAX_SYMMETRY_OPERATIONS`.
    """
    check_number(len(triplets))
    parsed = [_parse(triplet) for triplet in triplets]
    rotations, shifts = zip(*parsed, strict=True) if parsed else ((), ())
    return Operations.of(
        np.array(rotations, np.int64).reshape(-1, 3, 3), np.array(shifts, np.int64).reshape(-1, 3)
    )


def check_number(num_operations: int) -> None:
    """Reject a list of operations that is longer than that of any space group."""
    if num_operations > MAX_SYMMETRY_OPERATIONS:
        raise CrystalError(
            f"{num_operations} symmetry operations: no space group has more than "
            f"{MAX_SYMMETRY_OPERATIONS}"
        )


def from_gemmi(operations: Iterable[gemmi.Op]) -> Operations:
    """gemmi's operations, for example of a space group."""
    listed = list(operations)
    rotations = np.array([operation.rot for operation in listed]) // gemmi.Op.DEN
    shifts = np.array([operation.tran for operation in listed]) * (GRID // gemmi.Op.DEN)
    return Operations.of(rotations.astype(np.int64), shifts.astype(np.int64))


def missing_product(operations: Operations) -> str | None:
    """Two operations whose product is not among them, as text; None if they are a group."""
    codes = _products(operations)
    known = np.isin(codes, np.fromiter(operations.codes, np.int64))
    if known.all():
        return None
    i, j = np.unravel_index(int(np.argmin(known)), known.shape)
    return f"{triplet(operations, int(i))!r} times {triplet(operations, int(j))!r}"


def closure(operations: Operations) -> Operations | None:
    """The group that the operations generate; None if it is larger than any space group."""
    while True:
        rotations = np.einsum("iab,jbc->ijac", operations.rotations, operations.rotations)
        shifts = np.einsum("iab,jb->ija", operations.rotations, operations.shifts)
        shifts += operations.shifts[:, None]
        if np.abs(rotations).max() > 3:
            return None
        larger = Operations.of(rotations.reshape(-1, 3, 3), shifts.reshape(-1, 3))
        if len(larger) == len(operations):
            return operations
        if len(larger) > MAX_SYMMETRY_OPERATIONS:
            return None
        operations = larger


def group_number(operations: Operations, lattice: np.ndarray) -> int | None:
    """The number of the space group of a group of operations, in any setting."""
    import spglib

    try:
        found = spglib.get_spacegroup_type_from_symmetry(
            operations.rotations.astype(np.intc), operations.translations, lattice
        )
    except SPGLIB_ERRORS:
        return None
    return None if found is None else int(found.number)


def fit_cell(operations: Operations, lattice: np.ndarray) -> bool:
    """Whether all rotations map the lattice onto itself, within a few percent."""
    if len(operations) == 1:
        return True
    metric = lattice @ lattice.T
    lengths = np.sqrt(np.diag(metric))
    turned = operations.rotations.transpose(0, 2, 1) @ metric @ operations.rotations
    return bool((np.abs(turned - metric) <= _STRAIN * np.outer(lengths, lengths)).all())


def triplet(operations: Operations, index: int) -> str:
    """One operation as text."""
    operation = gemmi.Op()
    operation.rot = (operations.rotations[index] * gemmi.Op.DEN).tolist()
    operation.tran = (operations.shifts[index] * gemmi.Op.DEN // GRID).tolist()
    return operation.triplet()


def product_of(first: Operations, second: Operations) -> Operations:
    """All operations of the second list, each followed by all of the first."""
    rotations = np.einsum("iab,jbc->ijac", first.rotations, second.rotations)
    shifts = np.einsum("iab,jb->ija", first.rotations, second.shifts) + first.shifts[:, None]
    return Operations.of(rotations.reshape(-1, 3, 3), shifts.reshape(-1, 3))


def _products(operations: Operations) -> np.ndarray:
    rotations = np.einsum("iab,jbc->ijac", operations.rotations, operations.rotations)
    shifts = np.einsum("iab,jb->ija", operations.rotations, operations.shifts)
    return _codes(rotations, (shifts + operations.shifts[:, None]) % GRID)


def _codes(rotations: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """A number for each operation: entries of rotations are -3 to 3, shifts 0 to `GRID` - 1."""
    digits = (rotations + 3).reshape(*rotations.shape[:-2], 9)
    code = np.zeros(digits.shape[:-1], np.int64)
    for axis in range(9):
        code = code * 7 + digits[..., axis]
    for axis in range(3):
        code = code * GRID + shifts[..., axis]
    return code


def _parse(text: str) -> tuple[list[list[int]], list[int]]:
    rows = text.lower().replace(" ", "").split(",")
    if len(rows) != 3:
        raise CrystalError(f"symmetry operation {text!r} cannot be read")
    parsed = [_parse_row(row, text) for row in rows]
    rotation = [row[:3] for row in parsed]
    if abs(round(np.linalg.det(rotation))) != 1 or np.abs(rotation).max() > 3:
        raise CrystalError(f"symmetry operation {text!r} does not preserve the volume")
    return rotation, [row[3] for row in parsed]


def _parse_row(row: str, text: str) -> list[int]:
    """The three integers and the shift in a row such as `x-y+1/3`."""
    values, position = [0, 0, 0, 0], 0
    while position < len(row):
        found = _TERM.match(row, position)
        if found is None or found.end() == position or not (found[2] or found[4]):
            raise CrystalError(f"symmetry operation {text!r} cannot be read")
        if position and not found[1]:  # "xy" or "x1"
            raise CrystalError(f"symmetry operation {text!r} cannot be read")
        sign = -1 if found[1] == "-" else 1
        if found[4]:
            if found[2] not in (None, "1") or found[3]:
                factor = float(found[2]) / float(found[3] or 1) if found[3] != "0" else 0.5
                if factor != round(factor):
                    raise CrystalError(f"symmetry operation {text!r} cannot be read")
                values["xyz".index(found[4])] += sign * round(factor)
            else:
                values["xyz".index(found[4])] += sign
        else:
            values[3] += sign * _shift(found[2], found[3], text)
        position = found.end()
    if not row:
        raise CrystalError(f"symmetry operation {text!r} cannot be read")
    return values


def _shift(number: str, denominator: str | None, text: str) -> int:
    """A translation times `GRID`. A decimal must be close to a fraction that crystals have."""
    if denominator is not None:
        value = float(number) * GRID / int(denominator) if int(denominator) else 0.5
        if value != round(value):
            raise CrystalError(f"the translation in symmetry operation {text!r} cannot be read")
        return round(value)
    value = float(number)
    for steps, tolerance in ((24, 4e-3), (9, 6e-4), (5, 6e-4), (7, 6e-4), (16, 6e-4), (10, 6e-4)):
        if abs(value - round(value * steps) / steps) < tolerance:
            return round(value * steps) * GRID // steps
    raise CrystalError(f"the translation in symmetry operation {text!r} cannot be read")
