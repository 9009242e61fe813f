"""Compute fingerprints of crystals, so that sets of crystals can be compared.

Magpie features come from matminer. Its CrystalNN features are computed by this project's own, fast
code, which reads their definitions from matminer, or by matminer itself where Numba cannot be
imported. matminer is imported at the top of this module, so that workers import it when they start
and not during the time limit of their first crystal. It is slow to import: import this module only
where it is needed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matminer.featurizers.composition.composite import ElementProperty
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
from pymatgen.core import Lattice, Structure

from src.metrics.matching import Matcher, MatcherPool

if TYPE_CHECKING:
    from pymatgen.core import Composition

log = logging.getLogger(__name__)

_SITE = CrystalNNFingerprint.from_preset("ops")
_ELEMENTS = ElementProperty.from_preset("magpie", impute_nan=True)


def _of_sites() -> Callable[[Structure], np.ndarray]:
    """What computes CrystalNN features of all atoms of a crystal, (n, 61), compiled."""
    try:
        from src.metrics.generation.site_fingerprints import SiteFingerprints

        compute = SiteFingerprints(_SITE)
        compute(Structure(Lattice.cubic(3.0), ["Fe"], [[0, 0, 0]]))  # to compile it now
    except (ImportError, RuntimeError, ValueError) as error:  # of Numba, its cache, or matminer
        log.warning("Fingerprints are computed by matminer, many times as slowly: %s", error)
        return lambda crystal: np.array([_SITE.featurize(crystal, i) for i in range(len(crystal))])
    return compute


_sites = _of_sites()

NUM_NEIGHBORS = 100
"""Neighbors in the average minimum distances, as in the paper (Widdowson et al., 2022)."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Fingerprints of one crystal.

    Attributes:
        structure: (61,) CrystalNN order parameters (preset `ops`), averaged over sites
            (dimensionless).
        composition: (132,) Magpie statistics of element properties, each in its own unit; missing
            properties of an element are imputed by the mean over elements.
        amd: (100,) see `average_minimum_distances`; None in parts that were computed without.
    """

    structure: np.ndarray
    composition: np.ndarray
    amd: np.ndarray | None


def fingerprint(structure: Structure, *_: object) -> Fingerprint:
    """Compute the fingerprint of one crystal.

    CrystalNN may raise or hang: use `compute_fingerprints` for crystals of unknown quality.
    """
    return Fingerprint(
        structure=_sites(structure).mean(axis=0),
        composition=composition_fingerprint(structure.composition),
        amd=average_minimum_distances(structure),
    )


def average_minimum_distances(structure: Structure, count: int = NUM_NEIGHBORS) -> np.ndarray:
    """The average minimum distances (AMD) of a crystal (Widdowson et al., MATCH 87, 529 (2022)).

    Args:
        structure: a crystal, whose elements do not count.
        count: of neighbors.

    Returns:
        (count,) mean distance in Å from an atom to its k-th neighbor, for k = 1, 2, ...
    """
    lattice = structure.lattice
    # of a sphere that holds half as many again, if atoms were spread evenly
    radius = (1.5 * (count + 1) * lattice.volume / len(structure) * 0.75 / math.pi) ** (1 / 3)
    total = np.zeros(count)
    for center in structure.cart_coords:
        while True:
            near: Any = lattice.get_points_in_sphere(
                structure.frac_coords, center, radius, zip_results=False
            )
            distances = near[1]
            if len(distances) > count:
                break
            radius *= 1.2
        total += np.sort(distances)[1 : count + 1]  # the first is the atom itself
    return total / len(structure)


def composition_fingerprint(composition: Composition) -> np.ndarray:
    """The composition part of the `fingerprint`, which is fast and cannot hang."""
    return np.array(_ELEMENTS.featurize(composition), dtype=float)


def compute_fingerprints(
    structures: Sequence[Structure],
    *,
    num_workers: int | None = None,
    timeout: float = 60.0,
    progress: bool = False,
    function: Callable[..., Fingerprint] = fingerprint,
) -> list[Fingerprint | str]:
    """Compute fingerprints in worker processes, because CrystalNN hangs on some crystals.

    Args:
        num_workers: see `MatcherPool`; with 0, the timeout has no effect.
        timeout: time limit in seconds for one crystal.
        function: computes the fingerprint of a crystal; it has to meet the requirements for
            `MatcherPool`'s `matcher`.

    Returns:
        For each crystal, its fingerprint or the reason why there is none.
    """
    # MatcherPool runs any function on pairs: here on each crystal paired with itself.
    with MatcherPool(num_workers, timeout=timeout, matcher=cast(Matcher, function)) as pool:
        results = pool.match(structures, structures, progress=progress and "fingerprints")
    return [cast(Fingerprint, r.rms) if r.matched else r.message for r in results]
