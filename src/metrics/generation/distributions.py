"""Compare distributions of two sets of crystals, and find crystals that no real one is like."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from pymatgen.core import Structure
from scipy.stats import wasserstein_distance

from src.metrics.generation.descriptors import Descriptors

log = logging.getLogger(__name__)

TOO_CLOSE = 0.7
"""Atoms are too close below this many times the sum of their covalent radii."""

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

DISTANCES = (
    "wdist_density",
    "wdist_num_elements",
    "wdist_num_atoms",
    "wdist_volume_per_atom",
    "wdist_lengths",
    "wdist_angles",
    "tvd_space_groups",
    "tvd_elements",
)
"""The keys of `distances`."""


def distances(ours: Descriptors, theirs: Descriptors) -> dict[str, float | None]:
    """Distances between the distributions of two sets of crystals; None if one of them is empty.

    - `wdist_density` (g/cm^3), `wdist_num_elements`, `wdist_num_atoms`, `wdist_volume_per_atom`
      (Å^3): Wasserstein distances. Those of density and number of elements are CDVAE's.
    - `wdist_lengths` (Å), `wdist_angles` (degrees): the mean over the three lengths or angles of
      the Niggli cell, each compared with the same one.
    - `tvd_space_groups`: total variation distance between the frequencies of space groups, half the
      sum of the absolute differences: 0 if they are equal, 1 if no group is in both sets.
    - `tvd_elements`: the same for the elements, over the atoms of all crystals together.
    """
    if not len(ours) or not len(theirs):
        return dict.fromkeys(DISTANCES)
    names = ("density", "num_elements", "num_atoms", "volume_per_atom", "lengths", "angles")
    found: dict[str, float | None] = {
        f"wdist_{name}": _wasserstein(getattr(ours, name), getattr(theirs, name)) for name in names
    }
    groups = [np.bincount(each.space_group, minlength=231) for each in (ours, theirs)]
    elements = [each.elements.sum(axis=0) for each in (ours, theirs)]
    return {
        **found,
        "tvd_space_groups": total_variation(*groups),
        "tvd_elements": total_variation(*elements),
    }


def wasserstein_distances(
    generated: Sequence[Structure], reference: Sequence[Structure]
) -> dict[str, float | None]:
    """Wasserstein distances for density (g/cm^3), number of elements and number of atoms."""
    properties = {
        "wdist_density": attrgetter("density"),
        "wdist_num_elements": attrgetter("n_elems"),
        "wdist_num_atoms": attrgetter("num_sites"),
    }
    sets = (generated, reference)
    if not all(sets):
        log.warning("One of the sets has no valid crystals: Wasserstein distances are null")
        return dict.fromkeys(properties)
    return {
        name: float(wasserstein_distance(*([float(value(s)) for s in each] for each in sets)))
        for name, value in properties.items()
    }


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """The total variation distance between two distributions, given by counts (n,), not all 0."""
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def plausibility(ours: Descriptors, theirs: Descriptors) -> dict[str, Any]:
    """Figures of geometries that the usual test of validity lets through.

    Args:
        ours: of generated crystals with a valid structure.
        theirs: of real crystals.

    Returns:
        - `closest_quantiles`: of `Descriptors.closest` of our crystals, by quantile.
        - `too_close`, `isolated`: shares of our crystals in which two atoms are closer than
          `TOO_CLOSE` times the sum of their covalent radii, or one is isolated (see `ISOLATED`);
          with the suffix `_reference`, the same of the real ones.
        - `density_outside`, `volume_per_atom_outside`: shares of our crystals with a smaller or
          larger one than any of the real ones.

        Shares are None, and there are no quantiles, if there are no crystals.
    """
    figures: dict[str, Any] = {"closest_quantiles": _quantiles(ours.closest)}
    for suffix, each in (("", ours), ("_reference", theirs)):
        figures[f"too_close{suffix}"] = _share(each.closest < TOO_CLOSE)
        figures[f"isolated{suffix}"] = _share(each.isolated)
    for name in ("density", "volume_per_atom"):
        values, real = getattr(ours, name), getattr(theirs, name)
        outside = (values < real.min(initial=np.inf)) | (values > real.max(initial=-np.inf))
        figures[f"{name}_outside"] = _share(outside) if len(real) else None
    return figures


def _wasserstein(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """The mean over columns, without crystals that have no value."""
    columns = [each.reshape(len(each), -1).T for each in (ours, theirs)]
    found = []
    for first, second in zip(*columns, strict=True):
        known = [values[np.isfinite(values)] for values in (first, second)]
        if not all(map(len, known)):
            return None
        found.append(wasserstein_distance(*known))
    return float(np.mean(found))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    known = values[np.isfinite(values)]
    found = np.quantile(known, QUANTILES).tolist() if len(known) else []
    return dict(zip(map(str, QUANTILES), found, strict=False))


def _share(flags: np.ndarray | Sequence[bool]) -> float | None:
    return float(np.mean(flags)) if len(flags) else None
