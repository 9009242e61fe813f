"""Figures of a set of generated crystals, from the results of each.

The names of the figures say what they depend on: threshold, potential, and whether crystals were
symmetrized and relaxed first. A crystal on which something failed is in every denominator. Each
fraction is followed by `NAME_interval`; see `src.metrics.generation.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.metrics.generation.intervals import fraction, with_intervals
from src.metrics.generation.stability.potentials import Potential
from src.metrics.generation.stability.results import Row

STABLE = 0.0  # eV/atom above the hull, at most
ROUNDING = 1e-5  # eV/atom, of potentials that compute in single precision
METASTABLE = 0.1  # eV/atom above the hull, less than this: MatterGen's and others' limit
# eV/atom: so far below, the reference lacks what a crystal competes with, or the potential errs
IMPLAUSIBLE = -0.5
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def state_name(row_state: str, symmetrized: bool) -> str:
    """`as_generated`, `relaxed`, `symmetrized` or `symmetrized_relaxed`, for names of figures."""
    if not symmetrized:
        return row_state
    return "symmetrized" if row_state == "as_generated" else f"symmetrized_{row_state}"


def energy_figures(rows: Sequence[Row], potential: Potential, state: str) -> dict[str, Any]:
    """Figures of forces and stresses of crystals in one state.

    Args:
        rows: one for each crystal.
        potential: that judged.
        state: its `state_name`.

    Returns:
        `num_failed_*`, and the quantiles of `largest_force_*` (eV/Å) and `largest_stress_*` (the
        largest component, GPa). A failed crystal counts as infinite, which JSON writes as null.
    """
    name = f"{potential.label}_{state}"
    stresses = [
        math.inf if "failed" in row or row["stress"] is None else max(map(abs, row["stress"]))
        for row in rows
    ]
    return {
        f"num_failed_{name}": sum("failed" in row for row in rows),
        f"largest_force_{name}": quantiles([row.get("force", math.inf) for row in rows]),
        f"largest_stress_{name}": quantiles(stresses),
    }


def relaxation_figures(
    before: Sequence[Row], after: Sequence[Row], potential: Potential, state: str
) -> dict[str, Any]:
    """How far crystals move, and what they gain, when they are relaxed.

    Args:
        before, after: one row for each crystal, in the same order.
        potential: that judged.
        state: the `state_name` after relaxing.

    Returns:
        - `converged_*`, `still_matches_*`: fractions of all crystals.
        - `energy_gained_*` (eV/atom), `volume_change_*` (absolute value, relative): quantiles over
          all crystals; a failed one counts as infinite.
        - `rmsd_*` (Å), `rms_*` (in units of (V/N)^(1/3)): quantiles over the crystals that still
          match.
    """
    name = f"{potential.label}_{state}"
    gained = [
        math.inf if "failed" in first or "failed" in last else first["energy"] - last["energy"]
        for first, last in zip(before, after, strict=True)
    ]
    matching = [row for row in after if row.get("matches")]
    changes = [abs(row.get("volume_change", math.inf)) for row in after]
    figures = {
        f"converged_{name}": fraction([bool(row.get("converged")) for row in after]),
        f"energy_gained_{name}": quantiles(gained),
        f"still_matches_{name}": fraction([bool(row.get("matches")) for row in after]),
        f"rmsd_{name}": quantiles([row["rmsd"] for row in matching]),
        f"rms_{name}": quantiles([row["rms"] for row in matching]),
        f"volume_change_{name}": quantiles(changes),
    }
    shares = (f"converged_{name}", f"still_matches_{name}")
    return with_intervals(figures, dict.fromkeys(shares, len(after)))


def hull_figures(
    above: Sequence[float | None],
    potential: Potential,
    state: str,
    sun: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Fractions of stable and metastable crystals.

    Args:
        above: for each crystal, its energy above the hull in eV/atom; infinite where something
            failed, None where it is unknown.
        potential: that judged.
        state: its `state_name`.
        sun: for each crystal, whether it is unique and novel; None if that is not known.

    Returns:
        Fractions of all crystals, unknown and failed ones included:

        - `unknown_hull_*`: an element is not in the reference; such crystals are not counted as
          stable.
        - `stable_0.0_*`: at or below the hull, within `ROUNDING`. `metastable_0.1_*`: less than
          0.1 eV/atom above it; these include the stable ones.
        - `metastable_0.1_of_known_*`: the latter, among the crystals whose hull is known.
        - `implausible_*`: more than 0.5 eV/atom below the hull: the reference lacks what these
          crystals compete with, or the potential errs. They count as stable.
        - `sun_0.0_*`, `msun_0.1_*`: stable or metastable, unique and novel. Only with `sun`.
        - `energy_above_hull_*` (eV/atom): quantiles over the crystals whose hull is known; a
          failed one counts as infinite.
    """
    name = f"{potential.label}_{state}"
    known = [value for value in above if value is not None]
    stable = [value is not None and value <= STABLE + ROUNDING for value in above]
    metastable = [value is not None and value < METASTABLE for value in above]
    figures: dict[str, Any] = {
        f"unknown_hull_{name}": fraction([value is None for value in above]),
        f"stable_{STABLE}_{name}": fraction(stable),
        f"metastable_{METASTABLE}_{name}": fraction(metastable),
        f"metastable_{METASTABLE}_of_known_{name}": fraction([v < METASTABLE for v in known]),
        f"implausible_{name}": fraction([v is not None and v < IMPLAUSIBLE for v in above]),
    }
    if sun is not None:
        pairs = (("sun", STABLE, stable), ("msun", METASTABLE, metastable))
        for kind, threshold, low in pairs:
            both = [first and second for first, second in zip(low, sun, strict=True)]
            figures[f"{kind}_{threshold}_{name}"] = fraction(both)
    counts = dict.fromkeys(figures, len(above))
    counts[f"metastable_{METASTABLE}_of_known_{name}"] = len(known)
    figures[f"energy_above_hull_{name}"] = quantiles(known)
    return with_intervals(figures, counts)


def symmetry_figures(displacements: Sequence[float]) -> dict[str, Any]:
    """How many crystals gained symmetry when they were symmetrized, and how far atoms moved.

    Args:
        displacements: of the crystals that gained operations, Å; see `Symmetrized`.

    Returns:
        `num_gained_symmetry`, and the median and the largest displacement (Å), None if there are
        none.
    """
    return {
        "num_gained_symmetry": len(displacements),
        "displacement_median": float(np.median(displacements)) if len(displacements) else None,
        "displacement_largest": max(displacements, default=None),
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Each of `QUANTILES`, by its name; NaN if there are no values.

    No mean of two values is taken, so that an infinite one does not spoil its neighbor.
    """
    ordered = sorted(values)
    return {
        str(q): ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else math.nan
        for q in QUANTILES
    }


def failures(rows: Sequence[Row]) -> Mapping[str, list[str]]:
    """The IDs of the crystals that failed, by reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "failed" in row:
            found.setdefault(row["failed"], []).append(row["id"])
    return found
