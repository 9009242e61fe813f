"""Vectors that describe crystals, so that sets of them can be compared.

Everything comes from matminer and, where it is installed, average-minimum-distance (`amd`), whose
licence allows no commercial use (CC BY-NC-SA 4.0). Both are imported here at the top, so that
workers pay for it as they start and not with their first crystal: import this module only where
it is used.
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
"""k of the average minimum distances, the value its authors use (Widdowson et al., 2022)."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A crystal as vectors.

    Attributes:
        structure: (61,) CrystalNN's order parameters (preset `ops`), averaged over sites; no unit.
        composition: (132,) Magpie's statistics of element properties, each in its own unit; a
            property that an element lacks is the mean over elements.
        amd: (100,) mean distance of an atom to its k-th neighbour in Å, of whatever element; None
            if average-minimum-distance is not installed.
    """

    structure: np.ndarray
    composition: np.ndarray
    amd: np.ndarray | None


def fingerprint(structure: Structure, *_: object) -> Fingerprint:
    """The fingerprint of one crystal. CrystalNN may raise or hang, see `compute_fingerprints`."""
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
    """That part alone, which is quick and safe."""
    return np.array(_ELEMENTS.featurize(composition), dtype=float)


def compute_fingerprints(
    structures: Sequence[Structure],
    *,
    num_workers: int | None = None,
    timeout: float = 60.0,
    progress: bool = False,
    function: Callable[..., Fingerprint] = fingerprint,
) -> list[Fingerprint | str]:
    """Fingerprints in worker processes that can be killed, since CrystalNN hangs on some crystals.

    A `MatcherPool` does the work: it runs any function on pairs, here of a crystal with itself.

    Args:
        num_workers: see `MatcherPool`; with 0 nothing can be killed.
        timeout: limit in seconds for one crystal.
        function: what to run on a crystal, under the conditions of `MatcherPool`'s matcher.

    Returns:
        For each crystal its fingerprint, or why there is none.
    """
    with MatcherPool(num_workers, timeout=timeout, matcher=cast(Matcher, function)) as pool:
        results = pool.match(structures, structures, progress=progress)
    return [cast(Fingerprint, r.rms) if r.matched else r.message for r in results]
