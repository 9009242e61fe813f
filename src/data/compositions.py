"""Parse the compositions that a user asks for, given as formulas of whole cells."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies

from src.utils.errors import UserError


def parse_composition(formula: str) -> np.ndarray:
    """Atomic numbers (n,) of a cell that contains `SrTiO3`, or `4*SrTiO3` for four formula units.

    Raises:
        UserError: if the text is not a formula with whole numbers of atoms.
    """
    times, unit = re.fullmatch(r"(?:(\d+)\s*\*)?(.*)", str(formula).strip()).groups()  # type: ignore[union-attr]
    try:
        amounts = Composition(unit).items()
    except ValueError as error:
        raise UserError(f"composition {formula!r} is not a chemical formula: {error}") from error
    if any(isinstance(specie, DummySpecies) or n != round(n) for specie, n in amounts):
        raise UserError(f"composition {formula!r} must have whole numbers of real atoms")
    atom_types = [specie.Z for specie, n in amounts for _ in range(round(n) * int(times or 1))]
    if not atom_types:
        raise UserError(f"composition {formula!r} has no atoms")
    return np.array(atom_types, dtype=np.int64)


def read_compositions(given: Any) -> list[str] | None:
    """Read formulas from a list, a file with one per line, or comma-separated text.

    Raises:
        UserError: if the file is not text in UTF-8.
    """
    if given is None:
        return None
    if not isinstance(given, str):
        return [str(formula) for formula in given]
    path = Path(given).expanduser()
    try:
        formulas = path.read_text("utf-8").splitlines() if path.is_file() else given.split(",")
    except UnicodeDecodeError as error:
        raise UserError(f"compositions={path} is not a text file in UTF-8: {error}") from error
    return [formula.strip() for formula in formulas if formula.strip()]
