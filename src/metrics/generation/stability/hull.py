"""Energies above the convex hull, by pymatgen's phase diagrams."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pymatgen.core import Composition, DummySpecies

from src.utils.errors import UserError
from src.utils.formulas import reduced_formula

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PhaseDiagram


@dataclass(frozen=True, slots=True)
class Entry:
    """A known crystal in a phase diagram.

    Attributes:
        formula: such as `SrTiO3`.
        energy: eV/atom.
        id: of the crystal.
    """

    formula: str
    energy: float
    id: str


class Hull:
    """The lower convex hull of the energies of known crystals.

    A phase diagram is computed for each chemical system that is asked for, from the known crystals
    of this system and of those within it.

    Args:
        entries: the known crystals; of several with one composition, the lowest counts.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[frozenset[str], dict[str, Entry]] = {}
        for entry in entries:
            composition = Composition(entry.formula)
            of_system = self._entries.setdefault(system_of(composition), {})
            formula = reduced_formula(composition)
            if formula not in of_system or entry.energy < of_system[formula].energy:
                of_system[formula] = entry
        self._diagrams: dict[frozenset[str], PhaseDiagram] = {}

    @property
    def elements(self) -> set[str]:
        """The elements that have an entry of their own."""
        return {next(iter(system)) for system in self._entries if len(system) == 1}

    def above(self, composition: Composition, energy: float) -> float | None:
        """The energy above the hull, eV/atom; negative below the hull.

        Args:
            composition: of the crystal, which is no part of the hull itself.
            energy: eV/atom.

        Returns:
            None if it is unknown, because an element of the crystal has no entry.
        """
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

        system = system_of(composition)
        if not system <= self.elements:
            return None
        if system not in self._diagrams:
            known = [
                PDEntry(Composition(entry.formula), energy_of(entry), name=entry.id)
                for part in parts_of(system, self._entries)
                for entry in self._entries[part].values()
            ]
            self._diagrams[system] = PhaseDiagram(known)
        below = self._diagrams[system].get_hull_energy_per_atom(composition)
        return energy - float(below)


def energy_of(entry: Entry) -> float:
    """The energy of the formula as it is written, eV."""
    return entry.energy * Composition(entry.formula).num_atoms


def system_of(composition: Composition) -> frozenset[str]:
    """The symbols of the elements in a composition."""
    return frozenset(element.symbol for element in composition.elements)


def parts_of(system: frozenset[str], known: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Those of the known chemical systems that are within a system, in a fixed order."""
    known = known if isinstance(known, (dict, set)) else set(known)
    if 2 ** len(system) > len(known):
        found = [part for part in known if part <= system]
    else:
        found = [
            frozenset(part)
            for size in range(1, len(system) + 1)
            for part in combinations(sorted(system), size)
            if frozenset(part) in known
        ]
    return sorted(found, key=lambda part: (len(part), sorted(part)))


def read_phase_diagram(path: str | Path) -> list[Entry]:
    """Read the entries of one's own phase diagram.

    Args:
        path: a CSV with the columns `formula`, `energy_per_atom` (eV/atom) and, if wanted, `id`, or
            a JSON list of objects with these keys. `.gz` files can be read as well.

    Raises:
        UserError: if the file cannot be read, or a row of it is incomplete; the message names the
            row, counted from 1.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path} with a phase diagram")
    rows = _json_rows(path) if ".json" in path.suffixes else _csv_rows(path)
    if not rows:
        raise UserError(f"{path} has no entries: it needs one row for each known crystal")
    return [_entry(path, number, row) for number, row in enumerate(rows, start=1)]


def _json_rows(path: Path) -> list[Any]:
    try:
        if path.suffix == ".gz":
            content = json.loads(gzip.decompress(path.read_bytes()))
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise UserError(f"{path} must be a list of objects with the keys formula, energy_per_atom")
    return content


def _csv_rows(path: Path) -> Sequence[Any]:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a CSV: {error}") from error


def _entry(path: Path, number: int, row: Any) -> Entry:
    where = f"{path}, row {number}"
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object with the keys formula and energy_per_atom")
    for name in ("formula", "energy_per_atom"):
        if name not in row:
            raise UserError(
                f"{where} has no {name}; it has {', '.join(map(str, row)) or 'nothing'}"
            )
    try:
        energy = float(row["energy_per_atom"])
        if not math.isfinite(energy):
            raise ValueError("it is not finite")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: energy_per_atom is {row['energy_per_atom']!r}: write a number in eV/atom"
        ) from error
    try:
        composition = Composition(str(row["formula"]))
        if not composition or any(isinstance(e, DummySpecies) for e in composition):
            raise ValueError("no elements")
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: {row['formula']!r} is not a formula ({error})") from error
    return Entry(str(row["formula"]), energy, str(row.get("id") or number))
