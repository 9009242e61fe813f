"""Energies of generated crystals by an interatomic potential, relaxation, and phase diagrams."""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.metrics.generation.stability.energies import relax, single_point
    from src.metrics.generation.stability.forces import (
        POTENTIAL,
        QUANTILES,
        energies_gained,
        largest_forces,
        quantiles,
    )
    from src.metrics.generation.stability.hull import Entry, Hull, read_phase_diagram
    from src.metrics.generation.stability.potentials import find_potential

__all__ = [
    "POTENTIAL",
    "QUANTILES",
    "Entry",
    "Hull",
    "energies_gained",
    "find_potential",
    "largest_forces",
    "quantiles",
    "read_phase_diagram",
    "relax",
    "single_point",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(("relax", "single_point"), "energies"),
        **dict.fromkeys(("Entry", "Hull", "read_phase_diagram"), "hull"),
        **dict.fromkeys(("POTENTIAL", "QUANTILES", "energies_gained"), "forces"),
        **dict.fromkeys(("largest_forces", "quantiles"), "forces"),
        "find_potential": "potentials",
    },
)
