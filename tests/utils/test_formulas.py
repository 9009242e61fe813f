"""Formulas of crystals with noble gases."""

import warnings

import pytest
from pymatgen.core import Composition, Element

from src.utils.formulas import full_formula, reduced_formula


@pytest.mark.parametrize(
    ("ours", "pymatgens", "formula"),
    [
        (full_formula, lambda composition: composition.formula, "Ti2 O4 Ar2"),
        (reduced_formula, lambda composition: composition.reduced_formula, "TiO2Ar"),
    ],
)
def test_they_are_pymatgens_and_silent(ours, pymatgens, formula):
    with pytest.warns(UserWarning, match="No Pauling electronegativity"):
        assert pymatgens(_titania_with_argon()) == formula
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ours(_titania_with_argon()) == formula
    assert not caught


def _titania_with_argon() -> Composition:
    """As new: pymatgen keeps an electronegativity once found, and so warns once in a process."""
    Element.Ar.__dict__.pop("X", None)
    return Composition({"Ar": 2, "Ti": 2, "O": 4})
