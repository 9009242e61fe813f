"""Formulas as pymatgen writes them, without its warnings.

pymatgen sorts elements by electronegativity, and warns of each noble gas that it has none.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers start faster without it
    from pymatgen.core import Composition


def full_formula(composition: "Composition") -> str:
    """All atoms: `Sr1 Ti1 O3`."""
    with _noble_gases_allowed():
        return composition.formula


def reduced_formula(composition: "Composition") -> str:
    """`SrTiO3`."""
    with _noble_gases_allowed():
        return composition.reduced_formula


@contextmanager
def _noble_gases_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No Pauling electronegativity", UserWarning)
        yield
