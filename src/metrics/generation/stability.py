"""Forces on crystals and the energy that they gain by relaxing, by CHGNet 0.3.0.

The potential comes with the extra `stability`, which includes its weights.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from pymatgen.core import Structure
from rich.progress import track

from src.utils.errors import UserError

POTENTIAL = "CHGNet 0.3.0"
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
RELAXED = 0.05  # eV/Å, largest force at which a relaxation ends
MAX_STEPS = 200


def largest_forces(crystals: Sequence[Structure]) -> list[float]:
    """The largest force on an atom of each crystal, eV/Å; inf where the potential fails.

    Raises:
        UserError: if the extra is not installed.
    """
    potential = _load()
    found = []
    for crystal in track(crystals, "Forces", transient=True):
        try:
            forces = potential.predict_structure(crystal, task="ef")["f"]
            largest = float(np.linalg.norm(forces, axis=1).max())
        except Exception:  # an isolated atom, for example
            largest = math.inf
        found.append(largest if math.isfinite(largest) else math.inf)
    return found


def energies_gained(crystals: Sequence[Structure]) -> list[float]:
    """The energy that each crystal gains when atoms and cell relax, eV/atom; inf on failure.

    A relaxation ends where the largest force is below `RELAXED`, or after `MAX_STEPS` steps.

    Raises:
        UserError: if the extra is not installed.
    """
    potential = _load()
    from chgnet.model import StructOptimizer

    optimizer: Any = StructOptimizer(model=potential, use_device="cpu")
    gained = []
    for crystal in track(crystals, "Relaxing", transient=True):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = optimizer.relax(crystal, fmax=RELAXED, steps=MAX_STEPS, verbose=False)
            energies = result["trajectory"].energies
            gained.append((energies[0] - energies[-1]) / len(crystal))
        except Exception:
            gained.append(math.inf)
    return gained


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Each of `QUANTILES`, by its name; NaN if there are no values."""
    ordered = np.sort(values)
    return {
        str(q): float(ordered[min(int(q * len(ordered)), len(ordered) - 1)])
        if len(ordered)
        else math.nan
        for q in QUANTILES
    }


def _load() -> Any:
    if find_spec("chgnet") is None:
        raise UserError("forces need the extra stability: pip install -e '.[stability]'")
    warnings.filterwarnings("ignore", module="chgnet")
    from chgnet.model import CHGNet

    with contextlib.redirect_stdout(io.StringIO()):  # it names its version
        return CHGNet.load(use_device="cpu", verbose=False)
