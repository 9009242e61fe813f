"""Parse the compositions that a user asks for, given as formulas of whole cells."""

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies

from src.data.packing import read_text, unpacked_name
from src.utils.errors import UserError

FORMULA_COLUMNS = ("formula", "composition", "compositions", "pretty_formula", "reduced_formula")

# a number that belongs to no element, as in `NaCl 3`, `1e5` or `3 NaCl`
_STRAY_NUMBER = re.compile(r"(?:^|\s)[\d.]|[eE][+-]?\d+$(?<=\de\d)")
_NO_ATOM = re.compile(r"(?<=[A-Za-z)\]])0+(?:\.0*)?(?![\d.])")  # Na0
_MAX_NUM_ATOMS = 10_000


def parse_composition(formula: str) -> np.ndarray:
    """Atomic numbers (n,) of a cell that contains `SrTiO3`, or `4*SrTiO3` for four formula units.

    Raises:
        UserError: if the text is not a formula with whole numbers of atoms.
    """
    text = str(formula).strip()
    times, unit = re.fullmatch(r"(?:(\d+)\s*\*)?\s*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if _STRAY_NUMBER.search(unit):
        raise UserError(
            f"composition {formula!r} is not a chemical formula: it has a number that belongs to "
            "no element; write 3*NaCl for three formula units"
        )
    if _NO_ATOM.search(unit):
        raise UserError(f"composition {formula!r} has an element with no atoms: leave it out")
    try:
        amounts = Composition(unit).items()
    except ValueError as error:
        raise UserError(f"composition {formula!r} is not a chemical formula: {error}") from error
    if any(isinstance(specie, DummySpecies) or n != round(n) for specie, n in amounts):
        raise UserError(f"composition {formula!r} must have whole numbers of real atoms")
    num_atoms = sum(n for _, n in amounts) * int(times or 1)
    if num_atoms > _MAX_NUM_ATOMS:
        raise UserError(f"composition {formula!r} has more than {_MAX_NUM_ATOMS} atoms")
    atom_types = [specie.Z for specie, n in amounts for _ in range(round(n) * int(times or 1))]
    if not atom_types:
        raise UserError(f"composition {formula!r} has no atoms")
    return np.array(atom_types, dtype=np.int64)


def read_compositions(given: Any) -> list[str] | None:
    """Read formulas from a list, a file with one per line, a CSV file, or comma-separated text.

    A CSV file has a column `formula` or `composition`, or a single column. What YAML takes for a
    number (`InF`, `NaN`) or for false (`NO`) is read as the formula.

    Raises:
        UserError: if the file is not text in UTF-8, a CSV file has no such column, or an entry is
            a value that no formula could have become.
    """
    if given is None:
        return None
    if not isinstance(given, str):
        entries = given if isinstance(given, Iterable) else [given]
        return [_formula_of(entry) for entry in entries]
    path = Path(given).expanduser()
    try:
        is_file = path.is_file()
    except OSError:  # far too long for a path
        is_file = False
    if not is_file:
        return _not_empty(given.split(","))
    if unpacked_name(path.name).lower().endswith(".csv"):
        return _of_csv(path)
    text = read_text(path)
    if "\N{REPLACEMENT CHARACTER}" in text or "\0" in text:
        raise UserError(f"compositions={path} is not a text file in UTF-8")
    return _not_empty(text.splitlines())


def _of_csv(path: Path) -> list[str]:
    """The formulas in a column, as text: pandas would read NaN as a missing value."""
    text = read_text(path)
    if "\N{REPLACEMENT CHARACTER}" in text or "\0" in text:
        raise UserError(f"compositions={path} is not a text file in UTF-8")
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = [name.strip().lower() for name in rows[0]] if rows else []
    column = next((header.index(name) for name in FORMULA_COLUMNS if name in header), None)
    if column is None and len(header) == 1:
        return _not_empty(row[0] for row in rows)
    if column is None:
        raise UserError(
            f"compositions={path} has no column {FORMULA_COLUMNS[0]!r}; its columns are {header}: "
            "rename the one with the formulas"
        )
    return _not_empty(row[column] if column < len(row) else "" for row in rows[1:])


def _not_empty(formulas: Iterable[str]) -> list[str]:
    return [formula.strip() for formula in formulas if formula.strip()]


def _formula_of(entry: Any) -> str:
    """The formula that YAML may have taken for another value."""
    if isinstance(entry, str):
        return entry.strip()
    if entry is False:  # YAML reads NO so, and no other formula of a compound
        return "NO"
    if isinstance(entry, float) and math.isinf(entry) and entry > 0:
        return "InF"
    if isinstance(entry, float) and math.isnan(entry):
        return "NaN"
    raise UserError(
        f"compositions: YAML reads an entry as {entry!r}, which is not a formula: put formulas in "
        "quotes, as in ['ON']"
    )
