"""Evaluate a set of generated crystals against a set of reference crystals.

Each metric uses a standard library: SMACT for compositions, pymatgen for matching, matminer and
average-minimum-distance for fingerprints, SciPy for Wasserstein distances. `evaluate_generated`
documents the conventions that these libraries leave open.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import permutations
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure
from rich.progress import Progress
from scipy.spatial.distance import cdist, pdist
from scipy.stats import wasserstein_distance

from src.data.structures import to_crystal, to_structure
from src.metrics import PreparedCrystals
from src.metrics.generation.descriptors import Descriptors, describe
from src.metrics.generation.distributions import distances, plausibility
from src.metrics.generation.intervals import with_intervals
from src.metrics.generation.prototypes import has_known_prototype
from src.metrics.generation.validity import (
    invalid_reason,
    is_valid_composition,
    is_valid_structure,
)
from src.metrics.matching import (
    PYMATGEN,
    AnyMatcher,
    FastMatcher,
    MatcherSettings,
    open_matcher,
)
from src.utils.errors import UserError
from src.utils.formulas import reduced_formula
from src.utils.shards import part_of

if TYPE_CHECKING:
    from src.metrics.generation.fingerprints import Fingerprint

logger = logging.getLogger(__name__)

MAX_GROUP_PAIRS = 10**6  # of crystals with one formula, in both directions

# what each share in the metrics is a share of: all generated crystals, ...
_SHARES_OF_ALL = (
    "valid_structure",
    "valid_composition",
    "valid",
    "valid_composition_smact",
    "valid_unique_and_novel",
    "cov_precision",
)
_SHARES_OF_VALID = (  # ... those with a valid structure, ...
    "too_close",
    "isolated",
    "density_outside",
    "volume_per_atom_outside",
    "unique",
    "unique_groups",
    "novel",
    "novel_composition",
    "novel_structure",
    "novel_prototype",
    "unique_and_novel",
)
_SHARES_OF_REFERENCE = (  # ... or those of the test reference
    "too_close_reference",
    "isolated_reference",
    "valid_composition_reference",
    "valid_composition_smact_reference",
)
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """The evaluation result for one generated crystal.

    Attributes:
        valid_structure: whether its geometry is valid and its fingerprint could be computed.
        valid_composition: whether SMACT accepts its composition.
        duplicate_of: index of the earlier generated crystal that it matches, if any.
        known_as: index of the reference crystal that it matches, if any.
        reason: what is wrong or could not be determined; empty if nothing.
        known_composition: whether a reference crystal has its reduced formula.
        known_prototype: whether it matches a reference crystal irrespective of elements; None if
            that was not determined.
    """

    valid_structure: bool
    valid_composition: bool
    duplicate_of: int | None
    known_as: int | None
    reason: str
    known_composition: bool = False
    known_prototype: bool | None = None

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
    matcher: str = "fast",
    num_workers: int | None = None,
    match_timeout: float = 10.0,
    fingerprint_timeout: float = 60.0,
    fingerprints: bool = True,
    prototypes: bool = True,
    seed: int = 0,
    part: Part | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], list[Verdict]]:
    """Evaluate a set of generated crystals.

    Args:
        generated: the crystals to evaluate.
        reference: the crystals that novelty is measured against, usually the training set.
        test_reference: the crystals whose distributions the generated ones are compared with;
            None for `reference`.
        scale_reference: the crystals over which composition fingerprints are standardized (see
            `coverage`); None for the test reference.
        cutoffs: distance cutoffs for coverage.
        settings: matcher tolerances for uniqueness and novelty. Most papers use pymatgen's defaults
            for these two, and CDVAE's wider tolerances for reconstruction only.
        matcher, num_workers: see `open_matcher`.
        match_timeout, fingerprint_timeout: time limits in seconds, per pair and per crystal.
        fingerprints: whether to compute fingerprints, for coverage and AMD, which takes longest.
        prototypes: whether to look for known prototypes, which takes longer than the rest of
            novelty; they are always judged by the `fast` matcher.
        seed: random seed of intervals and of the crystals for `floor`.
        part: the results of `evaluate_part` for all crystals, from `join_parts`; None to compute
            them here.
        progress: show progress bars.

    Returns:
        A dict of metrics, and one `Verdict` per generated crystal. A metric is None if the sets are
        too small for it; a warning is logged. Fractions are between 0 and 1, and each is followed
        by `NAME_interval`; see `src.metrics.generation.intervals`.

        - `num_generated`, `num_reference`, `num_test_reference`: numbers of crystals. Reference
          crystals with an invalid geometry are left out with a warning.
        - `valid_structure`, `valid_composition`, `valid` (both): fractions of the generated
          crystals. `fingerprint_failures` counts those with a valid geometry on which CrystalNN
          failed, crashed or timed out; they count as invalid structures, as in CDVAE.
        - `unique`, `novel`, `unique_and_novel`: fractions of the structurally valid crystals. A
          crystal is unique if it matches no earlier unique one (the grouping of
          `StructureMatcher.group_structures`), and novel if it matches none of `reference`. Two
          crystals can only match if their reduced formulas are equal. `valid_unique_and_novel` is a
          fraction of all generated crystals. `match_timeouts` is the number of pairs without a
          result (timeout, crash or error); they count as not matching.
        - `novel_composition`, `novel_structure`: fractions of the structurally valid crystals whose
          reduced formula no reference crystal has; and of those that match none of the reference
          crystals with their formula, where there are some. Together they are `novel`.
          `novel_prototype`: those that match no reference crystal irrespective of elements; see
          `has_known_prototype`. None without `prototypes`.
        - `valid_composition_smact`: by the defaults of the installed smact, `smact_version`; see
          `is_valid_composition`. `valid_composition_reference`,
          `valid_composition_smact_reference`: the same two of the test reference, and
          `valid_structure_reference`: the fraction of it that is not left out.
        - figures of the structurally valid crystals from `plausibility`, compared with the test
          reference.
        - `cov_recall`, `cov_precision`: see `coverage`. `reference_fingerprint_failures` reference
          crystals have no fingerprint and are left out of it. Without `fingerprints`, all that
          follows from them is None, and no crystal is invalid for want of one.
        - `wdist_density` (g/cm^3), `wdist_num_elements`, `wdist_num_atoms`: Wasserstein distances
          between the valid generated crystals and the whole test reference. CDVAE draws 1,000 of
          the valid crystals; here all are used. The other distances between distributions are in
          `src.metrics.generation.distributions.distances`. `floor` has the same distances between
          the test reference and as many crystals of `reference` as there are valid ones, drawn at
          random (`floor_size`): what real crystals have. None without a test reference.
        - `amd_precision`, `amd_recall`, `amd_diversity`, `amd_diversity_reference` (Å): see
          `amd_distances`; computed for the valid generated crystals. None if the package
          average-minimum-distance is not installed.
        - `matcher`: which one judged; `tolerances`, `cutoffs`: the settings that the metrics depend
          on.

    Raises:
        UserError: if there are no generated crystals or no valid reference crystals.
        ImportError: if matminer is not installed.
    """
    if not generated:
        raise UserError("there are no generated crystals to evaluate")
    opened = open_matcher(matcher, num_workers, match_timeout)  # starts no process yet
    known, test = _references(reference, test_reference)
    valid_composition = [s.is_ordered and is_valid_composition(s.composition) for s in generated]
    reasons = [invalid_reason(structure) or "" for structure in generated]
    crystals = {
        i: _strip_annotations(generated[i]) for i, reason in enumerate(reasons) if not reason
    }
    scale = None
    if scale_reference is not None and fingerprints:
        library = _load_fingerprints()
        compositions = [_strip_annotations(s).composition for s in scale_reference]
        scale = [library.composition_fingerprint(composition) for composition in compositions]
    with opened:
        if part is None:
            part = _judge(
                crystals,
                known,
                dict(enumerate(test)),
                opened,
                settings,
                num_workers=num_workers,
                match_timeout=match_timeout,
                fingerprint_timeout=fingerprint_timeout,
                fingerprints=fingerprints,
                prototypes=prototypes,
                progress=progress,
            )
        found = {}
        for i in list(crystals):
            result = part.fingerprints.get(i)
            if isinstance(result, str):
                reasons[i] = f"no fingerprint: {result}"
                del crystals[i]
            elif result is not None:
                found[i] = result
        duplicate_of, groups, unanswered = _uniqueness(crystals, opened, settings, progress)
    test_found = [
        x for i in range(len(test)) if not isinstance(x := part.test_fingerprints.get(i, ""), str)
    ]
    unanswered += Counter(part.unanswered)
    for i, count in unanswered.items():
        reasons[i] = f"{count} comparisons without a result"
    formulas_known = {reduced_formula(crystal.composition) for crystal in known.values()}
    verdicts = [
        Verdict(
            i in crystals,
            composition,
            duplicate_of.get(i),
            part.known_as.get(i),
            reason,
            reduced_formula(crystals.get(i, structure).composition) in formulas_known,
            part.known_prototypes.get(i),
        )
        for i, (structure, composition, reason) in enumerate(
            zip(generated, valid_composition, reasons, strict=True)
        )
    ]
    structurally_valid = [verdicts[i] for i in crystals]
    if not structurally_valid:
        logger.warning(
            "No generated crystal is structurally valid: uniqueness and novelty are null"
        )
    valid = [i for i in crystals if verdicts[i].valid]
    logger.info("Describing %s crystals", f"{len(crystals) + len(test):,}")
    ours, theirs = describe(list(crystals.values()), progress), describe(test, progress)
    ours_valid = ours.part([n for n, i in enumerate(crystals) if verdicts[i].valid])
    num_test = len(reference if test_reference is None else test_reference)
    metrics = {
        "num_generated": len(generated),
        "num_reference": len(known),
        "num_test_reference": len(test),
        "valid_structure": _fraction([v.valid_structure for v in verdicts]),
        "valid_structure_reference": len(test) / num_test,
        "valid_composition": _fraction(valid_composition),
        "valid": _fraction([v.valid for v in verdicts]),
        **_other_compositions(generated, test),
        **plausibility(ours, theirs),
        "fingerprint_failures": sum(isinstance(x, str) for x in part.fingerprints.values())
        if fingerprints
        else None,
        "unique": _fraction([v.unique for v in structurally_valid]),
        # of different crystals, whatever their order; null: too many pairs to compare
        "unique_groups": len(set(groups)) / len(groups) if groups else None,
        "novel": _fraction([v.novel for v in structurally_valid]),
        **_kinds_of_novelty(structurally_valid),
        "unique_and_novel": _fraction([v.unique and v.novel for v in structurally_valid]),
        "valid_unique_and_novel": _fraction([v.valid and v.unique and v.novel for v in verdicts]),
        "match_timeouts": unanswered.total(),
        **(
            coverage(list(found.values()), test_found, cutoffs, len(generated), scale)
            if fingerprints
            else dict.fromkeys(("cov_recall", "cov_precision"))
        ),
        "reference_fingerprint_failures": len(test) - len(test_found) if fingerprints else None,
        **distances(ours_valid, theirs),
        **_floor(None if test_reference is None else known, theirs, len(valid), seed),
        **(
            amd_distances([found[i] for i in valid], test_found)
            if fingerprints
            else dict.fromkeys(AMD_DISTANCES)
        ),
        "matcher": opened.name,
        "tolerances": asdict(settings),
        "cutoffs": asdict(cutoffs),
        "smact_version": version("smact"),
    }
    counts = {
        **dict.fromkeys(_SHARES_OF_ALL, len(generated)),
        **dict.fromkeys(_SHARES_OF_VALID, len(structurally_valid)),
        **dict.fromkeys(_SHARES_OF_REFERENCE, len(test)),
        "cov_recall": len(test_found),
        "valid_structure_reference": num_test,
    }
    return with_intervals(metrics, counts, seed), verdicts


def _uniqueness(
    crystals: Mapping[int, Structure], opened: AnyMatcher, settings: MatcherSettings, progress: bool
) -> tuple[dict[int, int], list[int] | None, Counter[int]]:
    """Compare crystals among themselves.

    Returns:
        For each crystal that matches an earlier one, the index of that; the `connected_groups`; and
        for each crystal with pairs without a result, the number of these.
    """
    indices = list(crystals)  # first_matches returns positions in this list
    structures: Sequence[Structure] | PreparedCrystals = list(crystals.values())
    if isinstance(opened, FastMatcher):
        structures = PreparedCrystals(structures)
    duplicates, unanswered = first_matches(structures, None, opened, settings, progress)
    formulas = [reduced_formula(crystal.composition) for crystal in crystals.values()]
    groups = connected_groups(structures, formulas, opened, settings, duplicates, progress)
    duplicate_of = {
        i: indices[j] for i, j in zip(indices, duplicates, strict=True) if j is not None
    }
    return duplicate_of, groups, Counter({indices[n]: count for n, count in unanswered.items()})


@dataclass(frozen=True, slots=True)
class Part:
    """What takes long in `evaluate_generated`, of some of the crystals.

    Attributes:
        fingerprints: of the generated crystals with a valid geometry, by index; or the reason why
            there is none.
        test_fingerprints: of the crystals of the test reference with a valid geometry, by index
            among these.
        known_as: for each generated crystal that matches one of the reference, the index of that.
        known_prototypes: whether each generated crystal with a fingerprint has a known prototype;
            empty if that was not asked for.
        unanswered: for generated crystals, the number of reference crystals for which the matcher
            returned no result.
    """

    fingerprints: dict[int, Fingerprint | str]
    test_fingerprints: dict[int, Fingerprint | str]
    known_as: dict[int, int]
    known_prototypes: dict[int, bool]
    unanswered: dict[int, int]


def evaluate_part(
    generated: Sequence[Structure],
    reference: Sequence[Structure],
    test_reference: Sequence[Structure] | None = None,
    *,
    number: int,
    count: int,
    settings: MatcherSettings = PYMATGEN,
    matcher: str = "fast",
    num_workers: int | None = None,
    match_timeout: float = 10.0,
    fingerprint_timeout: float = 60.0,
    fingerprints: bool = True,
    prototypes: bool = True,
    progress: bool = False,
) -> Part:
    """Do one of `count` equal parts of what takes long in `evaluate_generated`, which see.

    Args:
        number: of the part, 1 to `count`.
        count: of the parts, which `join_parts` puts together.

    Raises:
        UserError, ImportError: as `evaluate_generated`.
    """
    opened = open_matcher(matcher, num_workers, match_timeout)
    known, test = _references(reference, test_reference)
    crystals = {
        i: _strip_annotations(generated[i])
        for i in part_of(len(generated), number, count)
        if is_valid_structure(generated[i])
    }
    with opened:
        return _judge(
            crystals,
            known,
            {i: test[i] for i in part_of(len(test), number, count)},
            opened,
            settings,
            num_workers=num_workers,
            match_timeout=match_timeout,
            fingerprint_timeout=fingerprint_timeout,
            fingerprints=fingerprints,
            prototypes=prototypes,
            progress=progress,
        )


def join_parts(parts: Sequence[Part]) -> Part:
    """The results of all parts together."""
    names = Part.__slots__
    return Part(*({k: v for part in parts for k, v in getattr(part, n).items()} for n in names))


def _judge(
    crystals: Mapping[int, Structure],
    known: Mapping[int, Structure],
    test: Mapping[int, Structure],
    opened: AnyMatcher,
    settings: MatcherSettings,
    *,
    num_workers: int | None,
    match_timeout: float,
    fingerprint_timeout: float,
    fingerprints: bool,
    prototypes: bool,
    progress: bool,
) -> Part:
    """The results for crystals with a valid geometry; see `evaluate_generated`."""
    results = []
    if fingerprints:
        # Both sets in one call, so that no worker idles between them.
        logger.info("Computing fingerprints of %s crystals", f"{len(crystals) + len(test):,}")
        results = _load_fingerprints().compute_fingerprints(
            [*crystals.values(), *test.values()],
            num_workers=num_workers,
            timeout=fingerprint_timeout,
            progress=progress,
        )
    found = dict(zip(crystals, results, strict=False))
    judged = {i: s for i, s in crystals.items() if not isinstance(found.get(i), str)}
    logger.info("Matching %s crystals", f"{len(judged):,}")
    indices, known_indices = list(judged), list(known)
    matches, unanswered = first_matches(
        list(judged.values()), list(known.values()), opened, settings, progress
    )
    known_as = {i: known_indices[j] for i, j in zip(indices, matches, strict=True) if j is not None}
    asked = (judged, known, known_as, settings, num_workers, match_timeout, progress)
    return Part(
        found,
        dict(zip(test, results[len(crystals) :], strict=fingerprints)),
        known_as,
        _known_prototypes(*asked) if prototypes else {},
        {indices[n]: count for n, count in unanswered.items()},
    )


def _known_prototypes(
    crystals: Mapping[int, Structure],
    known: Mapping[int, Structure],
    known_as: Mapping[int, int],
    settings: MatcherSettings,
    num_workers: int | None,
    timeout: float,
    progress: bool,
) -> dict[int, bool]:
    """Whether each crystal has a known prototype, as those have that match a known crystal."""
    asked = [i for i in crystals if i not in known_as]
    with FastMatcher(num_workers, timeout=timeout) as matcher:
        found = has_known_prototype(
            [crystals[i] for i in asked], list(known.values()), matcher, settings, progress
        )
    return {**dict.fromkeys(known_as, True), **dict(zip(asked, found, strict=True))}


def _kinds_of_novelty(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """`novel_composition`, `novel_structure` and `novel_prototype`."""
    prototypes = [v.known_prototype for v in verdicts]
    is_new = [v.novel and not v.known_composition for v in verdicts]
    return {
        "novel_composition": _fraction(is_new),
        "novel_structure": _fraction([v.novel and v.known_composition for v in verdicts]),
        "novel_prototype": None
        if None in prototypes
        else _fraction([known is False for known in prototypes]),
    }


def _other_compositions(
    generated: Sequence[Structure], test: Sequence[Structure]
) -> dict[str, float | None]:
    """Shares of compositions that SMACT accepts, by its own defaults and of real crystals."""
    compositions = [s.composition if s.is_ordered else None for s in generated]
    real = [s.composition for s in test]
    accepted = [c is not None and is_valid_composition(c, as_cdvae=False) for c in compositions]
    return {
        "valid_composition_smact": _fraction(accepted),
        "valid_composition_reference": _fraction([is_valid_composition(c) for c in real]),
        "valid_composition_smact_reference": _fraction(
            [is_valid_composition(c, as_cdvae=False) for c in real]
        ),
    }


def _floor(
    known: Mapping[int, Structure] | None, test: Descriptors, count: int, seed: int
) -> dict[str, Any]:
    """`distances` of at most `count` known crystals from those of the test reference."""
    if known is None or not count:
        return {"floor": None, "floor_size": 0}
    size = min(count, len(known))
    chosen = np.random.default_rng(seed).choice(list(known), size, replace=False)
    return {
        "floor": distances(describe([known[i] for i in sorted(chosen.tolist())]), test),
        "floor_size": size,
    }


def first_matches(
    crystals: Sequence[Structure] | PreparedCrystals,
    references: Sequence[Structure] | None,
    matcher: AnyMatcher,
    settings: MatcherSettings = PYMATGEN,
    progress: bool = False,
) -> tuple[list[int | None], Counter[int]]:
    """Find the first reference that each crystal matches.

    Only crystals with the same reduced formula are compared. If all have the same formula (as in a
    set of carbon crystals), every crystal may be compared with every reference.

    Args:
        crystals: `PreparedCrystals` save time with a `FastMatcher`.
        references: None to compare the crystals among themselves: each crystal is then compared
            with the earlier crystals that have no match themselves.

    Returns:
        For each crystal, the index of its match or None; and, by the index of the crystal, the
        number of pairs for which the matcher returned no result.
    """
    if isinstance(matcher, FastMatcher):
        found = matcher.first_match(crystals, references, settings, progress=progress)
        counts = {i: len(each.undecided) for i, each in enumerate(found) if each.undecided}
        return [each.reference for each in found], Counter(counts)
    assert not isinstance(crystals, PreparedCrystals), "which are FastMatcher's"
    others = crystals if references is None else references
    waiting = _by_formula(crystals)
    queues = waiting if references is None else _by_formula(references)
    matches: list[int | None] = [None] * len(crystals)
    unanswered: Counter[int] = Counter()
    with Progress(disable=not progress) as bar:
        task = bar.add_task("uniqueness" if references is None else "novelty", total=len(crystals))
        while True:
            # In each round, all crystals still without a match are compared with the next target
            # of their formula.
            pairs = []
            for formula, members in waiting.items():
                if queue := queues.get(formula):
                    target = queue.pop(0)  # removes it from members too if references is None
                    pairs += [(member, target) for member in members]
                else:
                    members.clear()
            if not any(waiting.values()):
                break
            results = matcher.match(
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


def connected_groups(
    crystals: Sequence[Structure] | PreparedCrystals,
    formulas: Sequence[str],
    matcher: AnyMatcher,
    settings: MatcherSettings = PYMATGEN,
    matches: Sequence[int | None] = (),
    progress: bool = False,
) -> list[int] | None:
    """Groups of crystals that matches connect, directly or through others.

    They do not depend on the order of the crystals: each pair with the same formula is compared in
    both directions, since matching is neither symmetric nor transitive.

    Args:
        crystals: as for `first_matches`.
        formulas: the reduced formula of each.
        matches: for each crystal, another that it is known to match, or None.

    Returns:
        For each crystal, the smallest index in its group; None if there are more than
        `MAX_GROUP_PAIRS` pairs to compare.
    """
    group = list(range(len(formulas)))

    def first_of(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    def connect(i: int, j: int) -> None:
        one, other = sorted((first_of(i), first_of(j)))
        group[other] = one

    for i, match in enumerate(matches):
        if match is not None:
            connect(i, match)
    members: dict[str, list[int]] = {}
    for i, formula in enumerate(formulas):
        members.setdefault(formula, []).append(i)
    if sum(len(each) * (len(each) - 1) for each in members.values()) > MAX_GROUP_PAIRS:
        return None
    pairs = [
        pair
        for each in members.values()
        for pair in permutations(each, 2)
        if first_of(pair[0]) != first_of(pair[1])
    ]
    if pairs:
        either: Any = crystals  # each matcher takes its own kind
        title = progress and "groups"
        results = matcher.match(either, either, settings, pairs=pairs, progress=title)
        for (i, j), result in zip(pairs, results, strict=True):
            if result.matched:
                connect(i, j)
    return [first_of(i) for i in range(len(formulas))]


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
        logger.warning("No reference crystal has a fingerprint: coverage is null")
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
        logger.warning("One of the sets has no valid crystals: Wasserstein distances are null")
        return dict.fromkeys(properties)
    return {
        name: float(wasserstein_distance(*([float(value(s)) for s in each] for each in sets)))
        for name, value in properties.items()
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
        logger.warning(
            "The package average-minimum-distance is not installed, or one of the sets has fewer "
            "than two valid crystals: AMD distances are null"
        )
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


def _load_fingerprints() -> ModuleType:
    try:
        from src.metrics.generation import fingerprints
    except ImportError as error:
        raise ImportError(
            "matminer is needed for fingerprints: run pip install -e '.[generation]' in the "
            "project folder"
        ) from error
    return fingerprints


def _references(
    reference: Sequence[Structure], test_reference: Sequence[Structure] | None
) -> tuple[dict[int, Structure], list[Structure]]:
    """The valid crystals of the reference, by index, and of the test reference."""
    known = _valid_by_index(reference, "training")
    test = known if test_reference is None else _valid_by_index(test_reference, "test")
    return known, list(test.values())


def _valid_by_index(structures: Sequence[Structure], name: str) -> dict[int, Structure]:
    """The structures with a valid geometry, by index."""
    valid = {i: _strip_annotations(s) for i, s in enumerate(structures) if is_valid_structure(s)}
    if not valid:
        raise UserError(f"there are no valid crystals in the {name} reference")
    if left_out := len(structures) - len(valid):
        logger.warning("Left out %d invalid crystals of the %s reference", left_out, name)
    return valid


def _strip_annotations(structure: Structure) -> Structure:
    """Drop oxidation states, isotopes and properties, which would prevent matches."""
    return to_structure(to_crystal(structure))


def _by_formula(structures: Sequence[Structure]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, structure in enumerate(structures):
        groups.setdefault(reduced_formula(structure.composition), []).append(index)
    return groups


def _fraction(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
