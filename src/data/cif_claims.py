"""What a CIF says about its cell besides the atoms: formula, density, volume and the like.

A crystal that differs from them was read or written wrongly: hydrogens without positions, a table
that is cut off, operations that are missing.
"""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import gemmi
import numpy as np
from gemmi import cif

from src.data.cif_tags import Tags
from src.data.crystal import CrystalError
from src.data.symbols import element_of_type, formula_text, parse_formula

_ATOMS = 0.1  # difference allowed in the number of atoms of an element, for rounded formulas
# relative differences allowed
_VOLUME = 0.01
_WEIGHT = 0.02
_DENSITY = 0.05
_MEASURED_DENSITY = 0.3
_ELECTRONS = 0.1
# without a sum formula, others tell which elements there are, and in what proportion
_FORMULA_TAGS = (
    "_chemical_formula_sum", "_chemical_formula_moiety", "_chemical_formula_structural",
    "_chemical_formula_iupac",
)  # fmt: skip
_MULTIPLICITY_TAGS = (
    "_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity",
    "_atom_site_wyckoff_label", "_atom_site_wyckoff_symbol",
)  # fmt: skip
_G_PER_CM3 = 1.66053906660  # one dalton per Å^3 (CODATA 2018)


@dataclass(slots=True, eq=False)
class Claims:
    """The claims of a data block that its atoms can be compared with.

    Attributes:
        formula: amounts in `_chemical_formula_sum`, by atomic number; None if there is none.
        units: `_cell_formula_units_Z`.
        weight: `_chemical_formula_weight`, Da.
        density: `_exptl_crystal_density_diffrn`, g/cm^3.
        measured_density: `_exptl_crystal_density_meas`, g/cm^3.
        electrons: `_exptl_crystal_F_000`, the number of electrons in the cell.
        formula_tag: where the formula is from.
        multiplicities: atoms in the cell by the multiplicities of the sites, by atomic number; None
            if these are not given.
        in_cell: atoms by `_atom_type_number_in_cell`, by atomic number; None if it is not given.
        hint: a sign that atoms are missing or alternatives of each other; empty if there is none.
            It counts only if no formula says that the atoms are right.
    """

    formula: dict[int, float] | None
    units: float | None
    weight: float | None = None
    density: float | None = None
    measured_density: float | None = None
    electrons: float | None = None
    formula_tag: str = _FORMULA_TAGS[0]
    multiplicities: dict[int, float] | None = None
    in_cell: dict[int, float] | None = None
    hint: str = ""

    @property
    def fix_the_content(self) -> bool:
        """Whether they say how many atoms the cell has, and not only in what proportion."""
        given = (self.density, self.measured_density, self.electrons)
        return (self.formula is not None and self.units is not None) or any(given)

    def contradiction(self, atom_types: np.ndarray, volume: float, has_isotopes: bool) -> str:
        """How the atoms of a cell differ from the claims; empty if they do not.

        Args:
            atom_types: (n,) atomic numbers.
            volume: of the cell, Å^3.
            has_isotopes: whether some hydrogen is deuterium; masses are then not compared.
        """
        if self.formula is not None and (reason := self._of_formula(atom_types)):
            return reason
        counts = Counter(atom_types.tolist())
        if self.in_cell is not None and self.in_cell != counts:
            return (
                f"the cell has {formula_text(dict(counts))}, but _atom_type_number_in_cell says "
                f"{formula_text(self.in_cell)}"
            )
        if self.formula is None or self.units is None:
            if self.multiplicities is not None and self.multiplicities != counts:
                return (
                    f"the cell has {formula_text(dict(counts))}, but by the multiplicities of its "
                    f"sites {formula_text(self.multiplicities)}"
                )
            if self.hint:
                return self.hint
        if self.electrons and abs(atom_types.sum() - self.electrons) > _ELECTRONS * self.electrons:
            return (
                f"the cell has {atom_types.sum()} electrons, but _exptl_crystal_F_000 is "
                f"{self.electrons:g}"
            )
        if has_isotopes or not (self.weight or self.density or self.measured_density):
            return ""
        mass = sum(gemmi.Element(int(z)).weight for z in atom_types)
        if self.weight and self.units and self.formula is None:
            expected = self.weight * self.units
            if abs(mass - expected) > _WEIGHT * expected:
                return (
                    f"the cell weighs {mass:.2f} Da, but _chemical_formula_weight times "
                    f"_cell_formula_units_Z is {expected:.2f} Da"
                )
        density = mass * _G_PER_CM3 / volume
        for tag, given, tolerance in (
            ("_exptl_crystal_density_diffrn", self.density, _DENSITY),
            ("_exptl_crystal_density_meas", self.measured_density, _MEASURED_DENSITY),
        ):
            # some files have kg/m^3
            if given and all(abs(density - x) > tolerance * x for x in (given, given / 1000)):
                return f"the density is {density:.3f} g/cm^3, but {tag} is {given:g}"
        return ""

    def _of_formula(self, atom_types: np.ndarray) -> str:
        assert self.formula is not None
        counts = Counter(atom_types.tolist())
        if counts == self.formula and (
            self.units in (None, 1) or _is_whole_cell(self.formula, self.units or 1)
        ):
            return ""
        if self.units is None:
            scale = len(atom_types) / sum(self.formula.values())
            if counts.keys() == self.formula.keys() and all(
                abs(counts[z] - scale * n) <= max(_ATOMS, 0.005 * counts[z])
                for z, n in self.formula.items()
            ):
                return ""
        # many programs write the content of the whole cell, beside the Z of the reduced formula
        elif _equal(counts, self.formula, self.units) or (
            self.units > 1 and _is_whole_cell(self.formula, self.units)
            and _equal(counts, self.formula, 1)
        ):  # fmt: skip
            return ""
        found = formula_text(dict(counts))
        times = "" if self.units is None else f" times _cell_formula_units_Z {self.units:g}"
        reason = (
            f"the cell has {found}, but {self.formula_tag}{times} says {formula_text(self.formula)}"
        )
        if counts[1] < self.formula.get(1, 0):
            reason += " (are there hydrogens without positions?)"
        return reason


def _equal(counts: Counter[int], formula: dict[int, float], units: float) -> bool:
    return counts.keys() == formula.keys() and all(
        abs(counts[z] - units * n) <= _ATOMS for z, n in formula.items()
    )


def _is_whole_cell(formula: dict[int, float], units: float) -> bool:
    """Whether a formula can be that of a cell with this number of formula units."""
    return all(n / units == round(n / units) for n in formula.values())


def read_claims(tags: Tags, volume: float) -> Claims:
    """The claims of a data block.

    Args:
        volume: of the cell, Å^3, which is compared with `_cell_volume`.

    Raises:
        CrystalError: if the volumes differ, or if the file says that some atoms have no positions.
    """
    given = _number(tags, "_cell_volume")
    if given and abs(volume - given) > max(_VOLUME * given, 0.5):
        raise CrystalError(
            f"the cell parameters give {volume:.6g} Å^3, but _cell_volume is {given:g} Å^3"
        )
    for count in tags.known("_atom_site_attached_hydrogens"):
        if cif.as_number(count) != 0:
            raise CrystalError(f"an atom has {count} attached hydrogens without positions")
    if any(flag.lower() == "dum" for flag in tags.known("_atom_site_calc_flag")):
        raise CrystalError("a site is a dummy (_atom_site_calc_flag)")
    tag = next((each for each in _FORMULA_TAGS if tags.value(each)), _FORMULA_TAGS[0])
    formula = tags.value(tag)
    return Claims(
        parse_formula(formula) if formula is not None else None,
        _number(tags, "_cell_formula_units_z") if tag == _FORMULA_TAGS[0] else None,
        _number(tags, "_chemical_formula_weight"),
        _number(tags, "_exptl_crystal_density_diffrn"),
        _number(tags, "_exptl_crystal_density_meas"),
        _number(tags, "_exptl_crystal_f_000"),
        formula_tag=tag,
    )


def add_claims_of_sites(claims: Claims, tags: Tags, atom_types: list[int]) -> None:
    """Add what the tables of a data block say about its sites.

    Args:
        claims: of the block; `multiplicities`, `in_cell` and `hint` are set.
        atom_types: (n,) atomic numbers of the sites.
    """
    claims.multiplicities = _multiplicities(tags, atom_types)
    claims.in_cell = _numbers_in_cell(tags, atom_types)
    claims.hint = _alternatives(tags) or _without_position(tags, atom_types)


def _multiplicities(tags: Tags, atom_types: list[int]) -> dict[int, float] | None:
    for name in _MULTIPLICITY_TAGS:
        column = tags.column(name)
        if not column or set(column) == {"1"}:  # some programs write 1 for all
            continue
        found = [re.match(r"['\"]?(\d+)", text) for text in column]
        numbers = [int(each[1]) for each in found if each is not None]
        if len(numbers) == len(atom_types):
            total: Counter[int] = Counter()
            for number, multiplicity in zip(atom_types, numbers, strict=True):
                total[number] += multiplicity
            return {z: float(n) for z, n in total.items()}
    return None


def _numbers_in_cell(tags: Tags, atom_types: list[int]) -> dict[int, float] | None:
    symbols = tags.column("_atom_type_symbol")
    numbers = list(map(cif.as_number, tags.column("_atom_type_number_in_cell")))
    if not numbers or len(numbers) != len(symbols) or not all(n >= 0 for n in numbers):
        return None
    total: Counter[int] = Counter()
    for symbol, number in zip(symbols, numbers, strict=True):
        if number:
            with suppress(CrystalError):
                total[element_of_type(cif.as_string(symbol), None, atom_types)] += int(number)
    return {z: float(n) for z, n in total.items()}


def _alternatives(tags: Tags) -> str:
    """Whether sites are alternatives of each other, although no occupancy says so."""
    groups = set(map(cif.as_number, tags.known("_atom_site_disorder_group"))) - {0}
    if len(groups) > 1 or any(group < 0 for group in groups):
        return "sites are alternatives (_atom_site_disorder_group): not an ordered crystal"
    return ""


def _without_position(tags: Tags, atom_types: list[int]) -> str:
    """Whether another table names an atom or element that the table of sites does not have."""
    if displaced := tags.known("_atom_site_aniso_label"):
        labels = {label.lower() for label in tags.known("_atom_site_label")}
        label = next((each for each in displaced if each.lower() not in labels), None)
        if labels and label is not None:
            return f"{label} has displacements (_atom_site_aniso_label), but no position"
    for symbol in tags.known("_atom_type_symbol"):
        with suppress(CrystalError):
            if element_of_type(symbol, None, atom_types) not in atom_types:
                return f"_atom_type_symbol lists {symbol}, but no site has it"
    return ""


def _number(tags: Tags, name: str) -> float | None:
    """A positive number; None if it is missing or not a number."""
    raw = tags.raw(name)
    if raw is None:
        return None
    number = cif.as_number(raw)
    return number if 0 < number < float("inf") else None
