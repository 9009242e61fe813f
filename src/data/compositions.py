"""Parse the compositions that a user asks for, given as formulas of whole cells."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies


def parse_composition(formula: str) -> np.ndarray:
    """Atomic numbers (n,) of a cell that contains `SrTiO3`, or `4*SrTiO3` for four formula units.

    Raises:
        ValueError: if the text is not a formula with whole numbers of atoms.
    """
    times, unit = re.fullmatch(r"(?:(\d+)\s*\*)?(.*)", str(formula).strip()).groups()  # type: ignore[union-attr]
    try:
        amounts = Composition(unit).items()
    except ValueError as error:
        raise ValueError(f"composition {formula!r} is not a chemical formula: {error}") from error
    if any(isinstance(specie, DummySpecies) or n != round(n) for specie, n in amounts):
        raise ValueError(f"composition {formula!r} must have whole numbers of real atoms")
    atom_types = [specie.Z for specie, n in amounts for _ in range(round(n) * int(times or 1))]
    if not atom_types:
        raise ValueError(f"composition {formula!r} has no atoms")
    return np.array(atom_types, dtype=np.int64)


def read_compositions(given: Any) -> list[str] | None:
    """Read formulas from a list, a file with one per line, or comma-separated text."""
    if given is None:
        return None
    if not isinstance(given, str):
        return [str(formula) for formula in given]
    path = Path(given).expanduser()
    formulas = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
    return [formula.strip() for formula in formulas if formula.strip()]
