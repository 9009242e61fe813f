"""Forces on crystals and the energy that they gain by relaxing, by CHGNet 0.3.0, in this process.

`src/eval_stability.py` judges many crystals, in worker processes and by any potential.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from ase.calculators.calculator import Calculator
from pymatgen.core import Structure
from rich.progress import track

from src.data.structures.convert import to_crystal
from src.metrics.generation.stability.energies import Relaxation, relax, single_point
from src.metrics.generation.stability.figures import QUANTILES, quantiles
from src.metrics.generation.stability.potentials import CHGNET_WEIGHTS, open_calculator
from src.utils.errors import UserError

POTENTIAL = f"CHGNet {CHGNET_WEIGHTS}"
__all__ = ["POTENTIAL", "QUANTILES", "energies_gained", "largest_forces", "quantiles"]

RELAXED = Relaxation().fmax  # eV/Å, largest force at which a relaxation ends
MAX_STEPS = Relaxation().max_steps


def largest_forces(crystals: Sequence[Structure]) -> list[float]:
    """The largest force on an atom of each crystal, eV/Å; inf where the potential fails.

    Raises:
        UserError: if the extra is not installed.
    """
    calculator = _load()

    def force(crystal: Structure) -> float:
        return single_point(to_crystal(crystal), calculator)["force"]

    return _for_each(crystals, "Forces", force)


def energies_gained(crystals: Sequence[Structure]) -> list[float]:
    """The energy that each crystal gains when atoms and cell relax, eV/atom; inf on failure.

    A relaxation ends where the largest force is below `RELAXED`, or after `MAX_STEPS` steps.

    Raises:
        UserError: if the extra is not installed.
    """
    calculator = _load()

    def gained(crystal: Structure) -> float:
        given = to_crystal(crystal)
        before = single_point(given, calculator)["energy"]
        return before - relax(given, calculator)["energy"]

    return _for_each(crystals, "Relaxing", gained)


def _for_each(
    crystals: Sequence[Structure], title: str, figure: Callable[[Structure], float]
) -> list[float]:
    found = []
    for crystal in track(crystals, title, transient=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of CHGNet
                found.append(figure(crystal))
        except Exception:  # an isolated atom, for example
            found.append(math.inf)
    return found


def _load() -> Calculator:
    if find_spec("chgnet") is None:
        raise UserError("forces need the extra stability: pip install -e '.[stability]'")
    return open_calculator("chgnet")
