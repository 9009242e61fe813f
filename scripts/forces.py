"""Forces on generated crystals, by CHGNet: `python scripts/forces.py SAMPLES --num 200`.

Prints quantiles of the largest force of each crystal and of the energy that it gains by relaxing.
Needs the extra `stability`. Crystals on which the potential fails are counted, with an infinite
force.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

from src.data.structures import read_structures  # noqa: E402
from src.metrics.generation.stability import (  # noqa: E402
    POTENTIAL,
    QUANTILES,
    energies_gained,
    largest_forces,
    quantiles,
)
from src.metrics.generation.validity import invalid_reason  # noqa: E402
from src.utils.strict_json import write_json  # noqa: E402


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
        "potential": POTENTIAL,
        "source": str(source),
        "num_crystals": len(crystals),
        "num_valid": len(valid),
        "largest_force": quantiles(forces),
    }
    if args.relax:
        figures["energy_gained"] = quantiles(energies_gained(valid[: args.relax]))
    table = Table(title=f"{source}: {len(valid)} valid of {len(crystals)} crystals, {POTENTIAL}")
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


if __name__ == "__main__":
    main()
