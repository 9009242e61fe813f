"""Whether a crystal can be one: its geometry by CDVAE's rule, its composition by SMACT's.

smact is imported when a composition is first judged, since that takes a moment.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from pymatgen.core import Composition, DummySpecies, Structure

from src.data.cif import CrystalError, check_crystal
from src.data.structures import to_crystal

# CDVAE (Xie et al., ICLR 2022), scripts/eval_utils.py
MIN_DISTANCE = 0.5  # Å
MIN_VOLUME = 0.1  # Å^3

_HEAVIEST_ELEMENT = 118
_MAX_COMBINATIONS = 1_000_000  # of oxidation states, about a second


def is_valid_structure(structure: Structure) -> bool:
    """Whether `invalid_reason` finds nothing wrong with the geometry."""
    return invalid_reason(structure) is None


def invalid_reason(structure: Structure) -> str | None:
    """What is wrong with a crystal's geometry, in one line; None if nothing is.

    A crystal is valid if no two atoms are closer than 0.5 Å and its cell has at least 0.1 Å^3.
    That is CDVAE's rule, but for one thing: the periodic images of one and the same atom are
    looked at as well, so a cell with an edge below 0.5 Å is invalid here and was not there.
    Numbers that are not finite, partial occupancies and sites of no element are invalid too.
    """
    try:
        with np.errstate(all="ignore"):  # the numbers may be any
            crystal = to_crystal(structure)
            check_crystal(crystal, max_atomic_number=_HEAVIEST_ELEMENT, min_distance=MIN_DISTANCE)
    except CrystalError as error:
        return str(error)
    if structure.volume < MIN_VOLUME:
        return f"the cell has {structure.volume:.3f} Å^3, less than {MIN_VOLUME}"
    return None


def is_valid_composition(composition: Composition) -> bool:
    """Whether SMACT allows a composition (Davies et al., JOSS 4, 1361 (2019)).

    It does if the elements can take oxidation states, one each, that sum to zero over the formula
    unit and give no anion a Pauling electronegativity at or below a cation's. One element alone,
    and metals alone (alloys), are always allowed.

    This is `smact.screening.smact_validity` with CDVAE's choice of options, which decide the
    figure: `oxidation_states_set="smact14"`, `use_pauling_test=True`, `include_alloys=True`,
    `check_metallicity=False`, `mixed_valence=False`. About 90 % of the crystals of the Materials
    Project are valid by it (Fe3O4 is not), so 100 % is not what a model of them should reach.

    Not allowed either, where SMACT itself would fail or take minutes to days: an element that it
    has no data on (heavier than Lr), and more than a million combinations of oxidation states
    (some ten elements, not all metals).

    The verdict is kept for each reduced formula.

    Raises:
        ValueError: if the numbers of atoms are not whole.
    """
    if any(isinstance(specie, DummySpecies) for specie in composition):
        return False
    amounts = composition.get_el_amt_dict()
    if any(amount != round(amount) for amount in amounts.values()):
        raise ValueError(f"{composition}: SMACT judges whole numbers of atoms only")
    counts = {symbol: int(amount) for symbol, amount in sorted(amounts.items())}
    divisor = math.gcd(*counts.values())
    return _is_valid_formula("".join(f"{symbol}{n // divisor}" for symbol, n in counts.items()))


@functools.lru_cache(maxsize=2**17)
def _is_valid_formula(formula: str) -> bool:
    from smact import Element, metals
    from smact.screening import smact_validity

    composition = Composition(formula)
    symbols = [element.symbol for element in composition]
    try:
        if not all(symbol in metals for symbol in symbols):
            states = [len(Element(symbol).oxidation_states_smact14 or ()) for symbol in symbols]
            if math.prod(states) > _MAX_COMBINATIONS:
                return False
        return smact_validity(
            composition,
            use_pauling_test=True,
            include_alloys=True,
            check_metallicity=False,
            oxidation_states_set="smact14",
            mixed_valence=False,
        )
    except KeyError:  # SMACT's, over an element that it has no data on
        return False
