"""Format formulas with pymatgen, without its warnings about noble gases.

pymatgen sorts elements by electronegativity, and warns about elements that have none.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that worker processes start faster
    from pymatgen.core import Composition


def full_formula(composition: "Composition") -> str:
    """The formula with all atoms, such as `Sr1 Ti1 O3`."""
    with _without_noble_gas_warnings():
        return composition.formula


def reduced_formula(composition: "Composition") -> str:
    """The reduced formula, such as `SrTiO3`."""
    with _without_noble_gas_warnings():
        return composition.reduced_formula


@contextmanager
def _without_noble_gas_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No Pauling electronegativity", UserWarning)
        yield
