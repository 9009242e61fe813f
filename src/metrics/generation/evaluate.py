"""What a set of generated crystals is worth, beside a set of reference crystals.

Each figure comes from the library that defines it: compositions from SMACT, matches from pymatgen,
fingerprints from matminer and average-minimum-distance, Wasserstein distances from SciPy. The
conventions are ours, and `evaluate_generated` states them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure
from rich.progress import Progress
from scipy.spatial.distance import cdist, pdist
from scipy.stats import wasserstein_distance

from src.data.structures import to_crystal, to_structure
from src.metrics.generation.validity import (
    invalid_reason,
    is_valid_composition,
    is_valid_structure,
)
from src.metrics.matching import PYMATGEN, MatcherPool, MatcherSettings
from src.utils.formulas import reduced_formula

if TYPE_CHECKING:
    from src.metrics.generation.fingerprints import Fingerprint

logger = logging.getLogger(__name__)

_MAX_DISTANCES = 2**24  # computed at once, 128 MiB


@dataclass(frozen=True, slots=True)
class CoverageCutoffs:
    """How near a crystal of the other set must be to cover one.

    Attributes:
        structure: between CrystalNN fingerprints, no unit.
        composition: between standardised Magpie fingerprints, no unit.
    """

    structure: float
    composition: float


CUTOFFS = {
    "mp_20": CoverageCutoffs(0.4, 10.0),
    "carbon_24": CoverageCutoffs(0.2, 4.0),
    "perov_5": CoverageCutoffs(0.2, 4.0),
}
"""Those of CDVAE's scripts/compute_metrics.py."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one generated crystal.

    Attributes:
        valid_structure: its geometry is valid, and it has a fingerprint.
        valid_composition: SMACT allows its composition.
        duplicate_of: index of the earlier generated crystal that it matches, if any.
        known_as: index of the reference crystal that it matches, if any.
        reason: what is wrong or was not found out, empty if nothing.
    """

    valid_structure: bool
    valid_composition: bool
    duplicate_of: int | None
    known_as: int | None
    reason: str

    @property
    def valid(self) -> bool:
        return self.valid_structure and self.valid_composition

    @property
    def unique(self) -> bool:
        return self.valid_structure and self.duplicate_of is None

    @property
    def novel(self) -> bool:
        return self.valid_structure and self.known_as is None


def evaluate_generated(
    generated: Sequence[Structure],
    reference: Sequence[Structure],
    test_reference: Sequence[Structure] | None = None,
    *,
    scale_reference: Sequence[Structure] | None = None,
    cutoffs: CoverageCutoffs = CUTOFFS["mp_20"],
    settings: MatcherSettings = PYMATGEN,
    num_workers: int | None = None,
    match_timeout: float = 10.0,
    fingerprint_timeout: float = 60.0,
    progress: bool = False,
) -> tuple[dict[str, Any], list[Verdict]]:
    """Figures of a set of generated crystals, and what became of each.

    Args:
        generated: the crystals to judge.
        reference: those that a novel crystal must not match, the training set.
        test_reference: those to compare distributions with; None for `reference`.
        scale_reference: those whose spread is the unit of distances between compositions; None
            for the test reference. See `coverage`.
        cutoffs: of coverage.
        settings: StructureMatcher's, for uniqueness and novelty. pymatgen's defaults, as most
            papers have it for these two; CDVAE's wider ones are for reconstruction.
        num_workers: see `MatcherPool`.
        match_timeout, fingerprint_timeout: limits in seconds for one pair and for one crystal.
        progress: show progress bars.

    Returns:
        A verdict on each generated crystal, and before it a dict; a figure that the sets are too
        small for is None, and the log says so. Shares are 0 to 1.

        - `num_generated`, `num_reference`, `num_test_reference`: crystals. Reference crystals
          with an invalid geometry are left out first, with a warning.
        - `valid_structure`, `valid_composition`, `valid` (both): shares of the generated crystals.
          `fingerprint_failures` of them have a valid geometry but CrystalNN failed, crashed or
          hung on them; they count as invalid structures, as in CDVAE.
        - `unique`, `novel`, `unique_and_novel`: shares of the structurally valid ones. Unique is
          what matches no earlier unique one (as `StructureMatcher.group_structures` groups them),
          novel what matches none of `reference`. Two crystals can only match if their reduced
          formulas are equal. `valid_unique_and_novel` is a share of all generated crystals.
          `match_timeouts` is the number of pairs with no answer (out of time, crash or error),
          taken for no match.
        - `cov_recall`, `cov_precision`: see `coverage`. `reference_fingerprint_failures` of the
          reference crystals have no fingerprint and stay out of it.
        - `wdist_density` (g/cm^3), `wdist_num_elements`, `wdist_num_atoms`: Wasserstein distances
          between the valid generated crystals and all of the test reference. CDVAE draws 1,000 of
          the valid ones for it; here all are taken.
        - `amd_precision`, `amd_recall`, `amd_diversity`, `amd_diversity_reference` (Å): see
          `amd_distances`; of the valid generated crystals. None without the package.
        - `matcher`, `cutoffs`: the settings that these figures depend on.

    Raises:
        ValueError: if there are no generated crystals, or no reference crystals that can be used.
        ImportError: if matminer is not installed.
    """
    if not generated:
        raise ValueError("there are no generated crystals to evaluate")
    known = _usable(reference, "training")
    test = list((known if test_reference is None else _usable(test_reference, "test")).values())
    valid_composition = [s.is_ordered and is_valid_composition(s.composition) for s in generated]
    reasons = [invalid_reason(structure) or "" for structure in generated]
    crystals = {i: _plain(generated[i]) for i, reason in enumerate(reasons) if not reason}

    library = _load_fingerprints()
    # of both sets in one go, so that no worker waits
    logger.info("Fingerprints of %s crystals", f"{len(crystals) + len(test):,}")
    results = library.compute_fingerprints(
        [*crystals.values(), *test],
        num_workers=num_workers,
        timeout=fingerprint_timeout,
        progress=progress,
    )
    scale = None
    if scale_reference is not None:
        scale = [library.composition_fingerprint(_plain(s).composition) for s in scale_reference]
    fingerprints = {}
    for i, result in zip(list(crystals), results, strict=False):
        if isinstance(result, str):
            reasons[i] = f"no fingerprint: {result}"
            del crystals[i]
        else:
            fingerprints[i] = result
    test_fingerprints = [x for x in results[-len(test) :] if not isinstance(x, str)]
    num_failures = sum(isinstance(x, str) for x in results)
    reference_failures = len(test) - len(test_fingerprints)

    sound, known_indices = list(crystals), list(known)
    logger.info("Matching %s crystals", f"{len(sound):,}")
    with MatcherPool(num_workers, timeout=match_timeout) as pool:
        structures = list(crystals.values())
        same, unanswered = first_matches(structures, None, pool, settings, progress)
        seen, more = first_matches(structures, list(known.values()), pool, settings, progress)
    unanswered += more
    for place, count in unanswered.items():
        reasons[sound[place]] = f"{count} comparisons without an answer"

    duplicate_of = {i: sound[j] for i, j in zip(sound, same, strict=True) if j is not None}
    known_as = {i: known_indices[j] for i, j in zip(sound, seen, strict=True) if j is not None}
    verdicts = [
        Verdict(i in crystals, composition, duplicate_of.get(i), known_as.get(i), reason)
        for i, (composition, reason) in enumerate(zip(valid_composition, reasons, strict=True))
    ]
    judged = [verdicts[i] for i in sound]
    if not judged:
        logger.warning("No generated crystal is structurally valid: uniqueness, novelty are null")
    valid = [i for i in sound if verdicts[i].valid]
    metrics = {
        "num_generated": len(generated),
        "num_reference": len(known),
        "num_test_reference": len(test),
        "valid_structure": _share([v.valid_structure for v in verdicts]),
        "valid_composition": _share(valid_composition),
        "valid": _share([v.valid for v in verdicts]),
        "fingerprint_failures": num_failures - reference_failures,
        "unique": _share([v.unique for v in judged]),
        "novel": _share([v.novel for v in judged]),
        "unique_and_novel": _share([v.unique and v.novel for v in judged]),
        "valid_unique_and_novel": _share([v.valid and v.unique and v.novel for v in verdicts]),
        "match_timeouts": unanswered.total(),
        **coverage(list(fingerprints.values()), test_fingerprints, cutoffs, len(generated), scale),
        "reference_fingerprint_failures": reference_failures,
        **wasserstein_distances([crystals[i] for i in valid], test),
        **amd_distances([fingerprints[i] for i in valid], test_fingerprints),
        "matcher": asdict(settings),
        "cutoffs": asdict(cutoffs),
    }
    return metrics, verdicts


def first_matches(
    crystals: Sequence[Structure],
    references: Sequence[Structure] | None,
    pool: MatcherPool,
    settings: MatcherSettings = PYMATGEN,
    progress: bool = False,
) -> tuple[list[int | None], Counter[int]]:
    """For each crystal, the first reference that it matches.

    Only crystals of one reduced formula are compared. Where all have the same one (carbon), that
    is every crystal with every reference.

    Args:
        references: None for the crystals themselves. Then each is compared with those before it
            that match none themselves.

    Returns:
        The index of the match, or None, for each crystal; and by index of a crystal the number of
        pairs that the matcher gave no answer on.
    """
    others = crystals if references is None else references
    waiting = _by_formula(crystals)
    queues = waiting if references is None else _by_formula(references)
    matches: list[int | None] = [None] * len(crystals)
    unanswered: Counter[int] = Counter()
    with Progress(disable=not progress) as bar:
        task = bar.add_task("uniqueness" if references is None else "novelty", total=len(crystals))
        while True:
            # A round: the next target of each formula, with all that still wait for a match.
            pairs = []
            for formula, members in waiting.items():
                if queue := queues.get(formula):
                    target = queue.pop(0)  # of the members, where they are the queue
                    pairs += [(member, target) for member in members]
                else:
                    members.clear()
            if not any(waiting.values()):
                break
            results = pool.match(
                [others[target] for _, target in pairs],
                [crystals[member] for member, _ in pairs],
                settings,
            )
            for (member, target), result in zip(pairs, results, strict=True):
                if result.matched:
                    matches[member] = target
                elif result.status != "unmatched":
                    unanswered[member] += 1
            for members in waiting.values():
                members[:] = [member for member in members if matches[member] is None]
            bar.update(task, completed=len(crystals) - sum(map(len, waiting.values())))
        bar.update(task, completed=len(crystals))
    return matches, unanswered


def coverage(
    generated: Sequence[Fingerprint],
    reference: Sequence[Fingerprint],
    cutoffs: CoverageCutoffs,
    num_generated: int | None = None,
    scale: Sequence[np.ndarray] | None = None,
) -> dict[str, float | None]:
    """CDVAE's coverage (Xie et al., ICLR 2022).

    `cov_recall` is the share of reference crystals near a generated one, `cov_precision` that of
    generated crystals near a reference one. Near is a Euclidean distance of at most the cutoff
    both between structure and between standardised composition fingerprints. As in CDVAE's
    script, the nearest crystal is sought for each of the two by itself, so the one need not be
    the other.

    Two things are not quite CDVAE's. Its script divides composition fingerprints by constants,
    for all data sets alike; here each feature is divided by its standard deviation over `scale`.
    The constants look like MP-20's (most are within 10 % of those of a part of it), so there
    little changes. Perov-5 varies less: take MP-20 for the scale where a figure is to be laid
    beside a published one. And here only crystals with a valid geometry have a fingerprint, so
    overlapping atoms never cover anything.

    Args:
        num_generated: what precision is a share of, if more than `len(generated)`: crystals
            without a fingerprint cover nothing.
        scale: composition fingerprints, (132,) each; None for those of `reference`.
    """
    if not reference:
        logger.warning("No reference crystal has a fingerprint: coverage is null")
        return {"cov_recall": None, "cov_precision": None}
    if not generated:
        return {"cov_recall": 0.0, "cov_precision": 0.0}
    std = np.std([x.composition for x in reference] if scale is None else scale, axis=0)
    std[std < 1e-8] = 1.0  # a feature that does not vary
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


def wasserstein_distances(
    generated: Sequence[Structure], reference: Sequence[Structure]
) -> dict[str, float | None]:
    """Wasserstein distances of density (g/cm^3), number of elements and number of atoms."""
    properties = {
        "wdist_density": attrgetter("density"),
        "wdist_num_elements": attrgetter("n_elems"),
        "wdist_num_atoms": attrgetter("num_sites"),
    }
    sets = (generated, reference)
    if not all(sets):
        logger.warning("No valid crystals in one of the sets: Wasserstein distances are null")
        return dict.fromkeys(properties)
    return {
        name: float(wasserstein_distance(*([float(value(s)) for s in each] for each in sets)))
        for name, value in properties.items()
    }


def amd_distances(
    generated: Sequence[Fingerprint], reference: Sequence[Fingerprint]
) -> dict[str, float | None]:
    """Distances between average minimum distances (Widdowson et al., MATCH 87, 529 (2022)), in Å.

    The AMD is a vector of mean distances to the k-th neighbour, k = 1 to 100, that two crystals
    share if their atoms are at the same places, whatever the cell and the elements. Between two of
    them the distance is that of their authors, Chebyshev's: the largest difference over k.

    `amd_precision` is the mean distance from a generated crystal to the nearest reference,
    `amd_recall` that from a reference crystal to the nearest generated one, `amd_diversity` the
    mean over pairs of generated crystals and `amd_diversity_reference` over pairs of reference
    crystals, to be compared with it.
    """
    names = ("amd_precision", "amd_recall", "amd_diversity", "amd_diversity_reference")
    sets = [[x.amd for x in each if x.amd is not None] for each in (generated, reference)]
    if min(map(len, sets)) < 2:
        logger.warning(
            "The package average-minimum-distance is not installed, or there are fewer than two "
            "valid crystals in one of the sets: distances between AMDs are null"
        )
        return dict.fromkeys(names)
    ours, theirs = map(np.stack, sets)
    precision, recall = _nearest(ours, theirs, metric="chebyshev")
    values = (precision, recall, pdist(ours, "chebyshev"), pdist(theirs, "chebyshev"))
    return {name: float(value.mean()) for name, value in zip(names, values, strict=True)}


def _nearest(
    rows: np.ndarray, columns: np.ndarray, *, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each of rows (n, d) to the nearest of columns (m, d), and the reverse."""
    of_rows, of_columns = [], np.full(len(columns), np.inf)
    for part in np.array_split(rows, len(rows) * len(columns) // _MAX_DISTANCES + 1):
        distances = cdist(part, columns, metric)
        of_rows.append(distances.min(axis=1))
        of_columns = np.minimum(of_columns, distances.min(axis=0, initial=np.inf))
    return np.concatenate(of_rows), of_columns


def _load_fingerprints() -> ModuleType:
    try:
        from src.metrics.generation import fingerprints
    except ImportError as error:
        raise ImportError(
            "matminer is needed for fingerprints: pip install -e '.[generation]' in the folder of "
            "the project"
        ) from error
    return fingerprints


def _usable(structures: Sequence[Structure], name: str) -> dict[int, Structure]:
    """Those with a valid geometry, by their index."""
    usable = {i: _plain(s) for i, s in enumerate(structures) if is_valid_structure(s)}
    if not usable:
        raise ValueError(f"there are no valid crystals in the {name} reference")
    if left_out := len(structures) - len(usable):
        logger.warning("%d crystals of the %s reference are invalid and left out", left_out, name)
    return usable


def _plain(structure: Structure) -> Structure:
    """Without oxidation states, isotopes and properties, which matching would tell apart."""
    return to_structure(to_crystal(structure))


def _by_formula(structures: Sequence[Structure]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, structure in enumerate(structures):
        groups.setdefault(reduced_formula(structure.composition), []).append(index)
    return groups


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
