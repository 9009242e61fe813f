"""Compute fingerprints of crystals, so that sets of crystals can be compared.

They come from matminer and, if it is installed, average-minimum-distance (`amd`), whose license
forbids commercial use (CC BY-NC-SA 4.0). Both are imported at the top of this module, so that
workers import them when they start and not during the time limit of their first crystal. They are
slow to import: import this module only where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from matminer.featurizers.composition.composite import ElementProperty
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

from src.metrics.matching import Matcher, MatcherPool

try:
    import amd
except ImportError:
    amd = None

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

_SITE = CrystalNNFingerprint.from_preset("ops")
_ELEMENTS = ElementProperty.from_preset("magpie", impute_nan=True)

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
        amd: (100,) mean distance in Å from an atom to its k-th neighbor, regardless of element;
            None if average-minimum-distance is not installed.
    """

    structure: np.ndarray
    composition: np.ndarray
    amd: np.ndarray | None


def fingerprint(structure: Structure, *_: object) -> Fingerprint:
    """Compute the fingerprint of one crystal.

    CrystalNN may raise or hang: use `compute_fingerprints` for crystals of unknown quality.
    """
    sites = [_SITE.featurize(structure, index) for index in range(len(structure))]
    distances = None
    if amd is not None:
        atoms = amd.PeriodicSet(structure.cart_coords, structure.lattice.matrix)
        distances = amd.AMD(atoms, NUM_NEIGHBORS)
    return Fingerprint(
        structure=np.mean(sites, axis=0),
        composition=composition_fingerprint(structure.composition),
        amd=distances,
    )


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
