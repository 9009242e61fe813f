"""Compare sets of crystals by their fingerprints: coverage, and average minimum distances."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist, pdist

if TYPE_CHECKING:
    from src.metrics.generation.fingerprints import Fingerprint

log = logging.getLogger(__name__)

_MAX_DISTANCES = 2**24  # computed at once; they take 128 MiB


@dataclass(frozen=True, slots=True)
class CoverageCutoffs:
    """The largest distances at which a crystal is covered by one of the other set.

    Attributes:
        structure: largest distance between CrystalNN fingerprints (dimensionless).
        composition: largest distance between standardized Magpie fingerprints (dimensionless).
    """

    structure: float
    composition: float


CUTOFFS = {
    "mp_20": CoverageCutoffs(0.4, 10.0),
    "carbon_24": CoverageCutoffs(0.2, 4.0),
    "perov_5": CoverageCutoffs(0.2, 4.0),
}
"""The cutoffs in CDVAE's scripts/compute_metrics.py, by data set."""


def coverage(
    generated: Sequence[Fingerprint],
    reference: Sequence[Fingerprint],
    cutoffs: CoverageCutoffs,
    num_generated: int | None = None,
    scale: Sequence[np.ndarray] | None = None,
) -> dict[str, float | None]:
    """CDVAE's coverage (Xie et al., ICLR 2022).

    `cov_recall` is the fraction of reference crystals that are close to a generated one, and
    `cov_precision` the fraction of generated crystals that are close to a reference one. Close
    means that the Euclidean distances between the structure fingerprints and between the
    standardized composition fingerprints are both at most the cutoff. As in CDVAE's script, the
    nearest crystal is found separately for the two fingerprints, so the two may differ.

    There are two differences from CDVAE. Its script standardizes composition fingerprints with the
    same constants for all data sets; here each feature is divided by its standard deviation over
    `scale`. The constants appear to come from MP-20 (most are within 10 % of the values for a part
    of it), so on MP-20 the results hardly change. Perov-5 varies less: use MP-20 as the scale to
    compare with published values. And here only crystals with a valid geometry have a fingerprint,
    so crystals with overlapping atoms never cover anything.

    Args:
        num_generated: denominator of the precision, if larger than `len(generated)`; crystals
            without a fingerprint then count as not covered.
        scale: composition fingerprints, (132,) each, to standardize by; None for those of
            `reference`.
    """
    if not reference:
        log.warning("No reference crystal has a fingerprint: coverage is null")
        return {"cov_recall": None, "cov_precision": None}
    if not generated:
        return {"cov_recall": 0.0, "cov_precision": 0.0}
    std = np.std([x.composition for x in reference] if scale is None else scale, axis=0)
    std[std < 1e-8] = 1.0  # constant features
    sets = (generated, reference)
    near = _nearest(*[np.stack([x.structure for x in each]) for each in sets])
    near_composition = _nearest(*[np.stack([x.composition for x in each]) / std for each in sets])
    precise, recalled = (
        (a <= cutoffs.structure) & (b <= cutoffs.composition)
        for a, b in zip(near, near_composition, strict=True)
    )
    return {
        "cov_recall": float(recalled.mean()),
        "cov_precision": int(precise.sum()) / (num_generated or len(generated)),
    }


AMD_DISTANCES = ("amd_precision", "amd_recall", "amd_diversity", "amd_diversity_reference")


def amd_distances(
    generated: Sequence[Fingerprint], reference: Sequence[Fingerprint]
) -> dict[str, float | None]:
    """Distances (Å) between average minimum distances (Widdowson et al., MATCH 87, 529 (2022)).

    The AMD of a crystal is the vector of the mean distances from an atom to its k-th neighbor, for
    k = 1 to 100. It depends only on the positions of the atoms, not on the choice of cell or the
    elements. As in the paper, two AMDs are compared by the Chebyshev distance, the largest
    difference over k.

    `amd_precision` is the mean distance from a generated crystal to the nearest reference, and
    `amd_recall` from a reference crystal to the nearest generated one. `amd_diversity` is the mean
    distance over pairs of generated crystals; compare it with `amd_diversity_reference`, the mean
    over pairs of reference crystals.
    """
    sets = [[x.amd for x in each if x.amd is not None] for each in (generated, reference)]
    if min(map(len, sets)) < 2:
        log.warning("One of the sets has fewer than two valid crystals: AMD distances are null")
        return dict.fromkeys(AMD_DISTANCES)
    ours, theirs = map(np.stack, sets)
    precision, recall = _nearest(ours, theirs, metric="chebyshev")
    values = (precision, recall, pdist(ours, "chebyshev"), pdist(theirs, "chebyshev"))
    return {name: float(value.mean()) for name, value in zip(AMD_DISTANCES, values, strict=True)}


def _nearest(
    rows: np.ndarray, columns: np.ndarray, *, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n,) of `rows` (n, d) to the nearest of `columns` (m, d), and (m,) in reverse."""
    of_rows, of_columns = [], np.full(len(columns), np.inf)
    for part in np.array_split(rows, len(rows) * len(columns) // _MAX_DISTANCES + 1):
        distances = cdist(part, columns, metric)
        of_rows.append(distances.min(axis=1))
        of_columns = np.minimum(of_columns, distances.min(axis=0, initial=np.inf))
    return np.concatenate(of_rows), of_columns


def nearest_structures(
    ours: Sequence[Fingerprint], theirs: Sequence[Fingerprint]
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of other crystals to each crystal, by the structure part of the fingerprints.

    Args:
        ours, theirs: n and m fingerprints, with m of at least 1.

    Returns:
        (n,) its index in `theirs`, and (n,) the distance (dimensionless).
    """
    rows, columns = (np.stack([x.structure for x in each]) for each in (ours, theirs))
    indices, distances = [], []
    for part in np.array_split(rows, len(rows) * len(columns) // _MAX_DISTANCES + 1):
        found = cdist(part, columns)
        indices.append(found.argmin(axis=1))
        distances.append(found.min(axis=1))
    return np.concatenate(indices), np.concatenate(distances)
