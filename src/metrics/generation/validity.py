"""Check whether a crystal is plausible: its geometry by CDVAE's rule, its composition by SMACT.

smact is imported only when the first composition is checked, because importing it is slow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies, Structure

from src.data.cif import Crystal, CrystalError, check_crystal, signed_volume
from src.data.structures import to_crystal

# CDVAE (Xie et al., ICLR 2022), scripts/eval_utils.py
MIN_DISTANCE = 0.5  # Å
MIN_VOLUME = 0.1  # Å^3

_HEAVIEST_ELEMENT = 118
_MAX_COMBINATIONS = 1_000_000  # of oxidation states; checking them takes about a second


def is_valid_structure(structure: Structure) -> bool:
    """Whether `invalid_reason` finds nothing wrong with the geometry."""
    return invalid_reason(structure) is None


def invalid_reason(structure: Structure | Crystal) -> str | None:
    """Describe in one line what is wrong with a crystal's geometry; None if it is valid.

    A crystal is valid if no two atoms are closer than 0.5 Å and its cell has at least 0.1 Å^3.
    This is CDVAE's rule with one difference: periodic images of the same atom count too, so a cell
    with an edge below 0.5 Å is invalid here but valid in CDVAE. Non-finite numbers, partial
    occupancies and sites without an element are also invalid.
    """
    try:
        with np.errstate(all="ignore"):  # coordinates and cells may be arbitrary
            crystal = structure if isinstance(structure, Crystal) else to_crystal(structure)
            check_crystal(crystal, max_atomic_number=_HEAVIEST_ELEMENT, min_distance=MIN_DISTANCE)
            volume = abs(signed_volume(crystal.lattice))
    except CrystalError as error:
        return str(error)
    return (
        f"the cell volume is {volume:.3f} Å^3, less than {MIN_VOLUME}"
        if volume < MIN_VOLUME
        else None
    )


CDVAE_OPTIONS: Mapping[str, Any] = {
    "use_pauling_test": True,
    "include_alloys": True,
    "check_metallicity": False,
    "oxidation_states_set": "smact14",
    "mixed_valence": False,
}
"""The options of `smact_validity` that judge as CDVAE does."""


def is_valid_composition(composition: Composition, as_cdvae: bool = True) -> bool:
    """Whether SMACT accepts a composition (Davies et al., JOSS 4, 1361 (2019)).

    It does if each element can be assigned one oxidation state such that the formula unit is
    neutral and every anion has a higher Pauling electronegativity than every cation. Single
    elements and compounds of metals only (alloys) are always accepted.

    This calls `smact.screening.smact_validity` with CDVAE's options, which the result depends on:
    `oxidation_states_set="smact14"`, `use_pauling_test=True`, `include_alloys=True`,
    `check_metallicity=False`, `mixed_valence=False`. About 90 % of the crystals in the Materials
    Project pass (Fe3O4 does not), so a generative model should not aim for 100 %.

    Args:
        composition: with whole numbers of atoms.
        as_cdvae: False for the defaults of the installed smact. Those of version 4 take the
            oxidation states that are reported often enough in the ICSD.

    Two kinds of compositions are rejected here because SMACT would fail on them or take minutes to
    days: those with an element without SMACT data (heavier than Lr), and those with more than a
    million combinations of oxidation states (about ten elements that are not all metals).

    Results are cached by reduced formula.

    Raises:
        ValueError: if the numbers of atoms are not integers.
    """
    if any(isinstance(specie, DummySpecies) for specie in composition):
        return False
    amounts = composition.get_el_amt_dict()
    if any(amount != round(amount) for amount in amounts.values()):
        raise ValueError(f"{composition}: SMACT accepts only whole numbers of atoms")
    counts = {symbol: int(amount) for symbol, amount in sorted(amounts.items())}
    divisor = math.gcd(*counts.values())
    formula = "".join(f"{symbol}{n // divisor}" for symbol, n in counts.items())
    return _is_valid_formula(formula, as_cdvae)


@functools.lru_cache(maxsize=2**17)
def _is_valid_formula(formula: str, as_cdvae: bool) -> bool:
    from smact import metals
    from smact.screening import smact_validity

    composition = Composition(formula)
    symbols = [element.symbol for element in composition]
    try:
        if any(symbol not in metals for symbol in symbols):
            states = "oxidation_states_smact14" if as_cdvae else "oxidation_states_icsd24"
            combinations = math.prod(_num_oxidation_states(symbol, states) for symbol in symbols)
            if combinations > _MAX_COMBINATIONS:
                return False
        return smact_validity(composition, **(CDVAE_OPTIONS if as_cdvae else {}))
    except KeyError:  # SMACT has no data on one of the elements
        return False


@functools.cache  # because SMACT reads files to make an element
def _num_oxidation_states(symbol: str, states: str) -> int:
    from smact import Element

    return len(getattr(Element(symbol), states) or ())
