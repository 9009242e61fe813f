"""Format formulas with noble gases."""

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
def test_formulas_agree_with_pymatgen_without_warnings(ours, pymatgens, formula):
    with pytest.warns(UserWarning, match="No Pauling electronegativity"):
        assert pymatgens(_titania_with_argon()) == formula
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ours(_titania_with_argon()) == formula
    assert not caught


def _titania_with_argon() -> Composition:
    """Clears the electronegativity that pymatgen caches, since it warns only once otherwise."""
    Element.Ar.__dict__.pop("X", None)
    return Composition({"Ar": 2, "Ti": 2, "O": 4})
