"""Forces on generated crystals, by CHGNet: `python scripts/forces.py SAMPLES --num 200`.

Prints quantiles of the largest force of each crystal and of the energy that it gains by relaxing.
Needs the extra `stability`. Crystals on which the potential fails are counted, with an infinite
force.
"""

import argparse
import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

from pymatgen.core import Structure  # noqa: E402

from src.data.structures import read_structures  # noqa: E402
from src.metrics.generation.validity import invalid_reason  # noqa: E402
from src.utils.strict_json import write_json  # noqa: E402

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
RELAXED = 0.05  # eV/Å, largest force at which a relaxation ends
MAX_STEPS = 200


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table and, with --json, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path, help="folder of samples, or any file of crystals")
    parser.add_argument("--num", type=int, default=200, help="crystals, from the first")
    parser.add_argument("--relax", type=int, default=0, help="how many of them to relax")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    source = args.samples / "samples.extxyz"
    source = source if source.is_file() else args.samples
    crystals = [named.structure for named in read_structures(source)[0][: args.num]]
    valid = [crystal for crystal in crystals if invalid_reason(crystal) is None]
    forces = largest_forces(valid)
    figures: dict[str, Any] = {
        "potential": "CHGNet 0.3.0",
        "source": str(source),
        "num_crystals": len(crystals),
        "num_valid": len(valid),
        "largest_force": _quantiles(forces),
    }
    if args.relax:
        figures["energy_gained"] = _quantiles(energies_gained(valid[: args.relax]))
    table = Table(title=f"{source}: {len(valid)} valid of {len(crystals)} crystals, CHGNet 0.3.0")
    table.add_column("quantile")
    for quantile in QUANTILES:
        table.add_column(f"{quantile:.0%}", justify="right")
    for name, unit in (("largest_force", "eV/Å"), ("energy_gained", "eV/atom")):
        if name in figures:
            cells = [f"{figures[name][str(q)]:.3f}" for q in QUANTILES]
            table.add_row(f"{name.replace('_', ' ')}, {unit}", *cells)
    Console().print(table)
    if args.json:
        write_json(args.json, figures)
    return figures


def largest_forces(crystals: Sequence[Structure]) -> list[float]:
    """The largest force on an atom of each crystal, eV/Å; inf where the potential fails."""
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
    """The energy that each crystal gains when atoms and cell relax, eV/atom."""
    from chgnet.model import StructOptimizer

    optimizer: Any = StructOptimizer(model=_load(), use_device="cpu")
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


def _load() -> Any:
    warnings.filterwarnings("ignore", module="chgnet")
    from chgnet.model import CHGNet

    return CHGNet.load(use_device="cpu", verbose=False)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = np.sort(values)
    return {
        str(q): float(ordered[min(int(q * len(ordered)), len(ordered) - 1)])
        if len(ordered)
        else math.nan
        for q in QUANTILES
    }


if __name__ == "__main__":
    main()
