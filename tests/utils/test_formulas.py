"""Formulas of crystals with noble gases."""

import warnings

import pytest
from pymatgen.core import Composition

from src.utils.formulas import full_formula, reduced_formula


def test_they_are_pymatgens_and_silent():
    composition = Composition({"Ar": 2, "Ti": 2, "O": 4})
    with pytest.warns(UserWarning, match="No Pauling electronegativity"):
        expected = composition.formula, composition.reduced_formula
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (full_formula(composition), reduced_formula(composition)) == expected
    assert not caught
