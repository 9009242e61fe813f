"""Evaluate a set of generated crystals against a set of reference crystals.

SMACT judges compositions and SciPy computes Wasserstein distances. Matching and fingerprints are
computed as by pymatgen and matminer, which the tests compare them with. `evaluate_generated`
documents the conventions that these libraries leave open.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from src.metrics.generation.descriptors import Descriptors, describe
from src.metrics.generation.distributions import distances, plausibility, wasserstein_distances
from src.metrics.generation.fingerprint_distances import (
    AMD_DISTANCES,
    CUTOFFS,
    CoverageCutoffs,
    amd_distances,
    coverage,
)
from src.metrics.generation.intervals import with_intervals
from src.metrics.generation.judging import (
    EvaluationOptions,
    Part,
    evaluate_part,
    find_duplicates_among,
    join_parts,
    judge,
    load_fingerprints,
    strip_annotations,
    valid_references,
)
from src.metrics.generation.matches import MAX_GROUP_PAIRS, connected_groups, first_matches
from src.metrics.generation.validity import invalid_reason
from src.metrics.generation.verdicts import (
    Verdict,
    composition_figures,
    make_verdicts,
    novelty_figures,
    validity_figures,
)
from src.utils.errors import UserError

if TYPE_CHECKING:
    from src.metrics.generation.fingerprints import Fingerprint

__all__ = [  # those of other modules can be imported from here too, as before they were divided
    "AMD_DISTANCES",
    "CUTOFFS",
    "MAX_GROUP_PAIRS",
    "CoverageCutoffs",
    "Evaluation",
    "EvaluationOptions",
    "Part",
    "Verdict",
    "amd_distances",
    "connected_groups",
    "coverage",
    "evaluate_generated",
    "evaluate_part",
    "evaluate_set",
    "first_matches",
    "join_parts",
    "wasserstein_distances",
]

log = logging.getLogger(__name__)

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
_FINGERPRINT_FIGURES = (
    "fingerprint_failures",
    "reference_fingerprint_failures",
    "cov_recall",
    "cov_precision",
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation of generated crystals, and what its figures are of.

    Attributes:
        metrics, verdicts: what `evaluate_generated` returns.
        part: the results for each crystal.
        judged: indices of the structurally valid generated crystals.
        described: of the same crystals, in this order.
        known, test: indices of the valid crystals of the reference and of the test reference.
        test_described: of the latter.
    """

    metrics: dict[str, Any]
    verdicts: list[Verdict]
    part: Part
    judged: list[int]
    described: Descriptors
    known: list[int]
    test: list[int]
    test_described: Descriptors


def evaluate_generated(
    generated: Sequence[Structure],
    reference: Sequence[Structure],
    test_reference: Sequence[Structure] | None = None,
    *,
    scale_reference: Sequence[Structure] | None = None,
    cutoffs: CoverageCutoffs = CUTOFFS["mp_20"],
    seed: int = 0,
    part: Part | None = None,
    options: EvaluationOptions | None = None,
    **changes: Any,
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
        seed: random seed of intervals and of the crystals for `floor`.
        part: the results of `evaluate_part` for all crystals, from `join_parts`; None to compute
            them here.
        options: how to judge; None for the defaults.
        changes: fields of `EvaluationOptions` that replace those in `options`, such as
            `prototypes=False`.

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
          `amd_distances`; computed for the valid generated crystals.
        - `matcher`: which one judged; `tolerances`, `cutoffs`: the settings that the metrics depend
          on.

    Raises:
        UserError: if there are no generated crystals or no valid reference crystals.
        ImportError: if matminer is not installed.
    """
    found = evaluate_set(
        generated,
        reference,
        test_reference,
        replace(options or EvaluationOptions(), **changes),
        scale_reference=scale_reference,
        cutoffs=cutoffs,
        seed=seed,
        part=part,
    )
    return found.metrics, found.verdicts


def evaluate_set(
    generated: Sequence[Structure],
    reference: Sequence[Structure],
    test_reference: Sequence[Structure] | None,
    options: EvaluationOptions,
    *,
    scale_reference: Sequence[Structure] | None = None,
    cutoffs: CoverageCutoffs = CUTOFFS["mp_20"],
    seed: int = 0,
    part: Part | None = None,
) -> Evaluation:
    """Evaluate a set of generated crystals as `evaluate_generated`, and keep what leads there."""
    if not generated:
        raise UserError("there are no generated crystals to evaluate")
    opened = options.open_matcher()
    known, test = valid_references(reference, test_reference)
    scale = None
    if scale_reference is not None and options.fingerprints:
        scale = _composition_fingerprints(scale_reference)
    invalid = {i: r for i, s in enumerate(generated) if (r := invalid_reason(s)) is not None}
    crystals = {i: strip_annotations(s) for i, s in enumerate(generated) if i not in invalid}
    with opened:
        if part is None:
            part = judge(crystals, known, dict(enumerate(test.values())), opened, options)
        failed = {i: x for i, x in part.fingerprints.items() if isinstance(x, str)}
        crystals = {i: s for i, s in crystals.items() if i not in failed}
        uniqueness = find_duplicates_among(crystals, opened, options)
    invalid |= {i: f"no fingerprint: {reason}" for i, reason in failed.items()}
    verdicts = make_verdicts(generated, crystals, invalid, known, part, uniqueness)
    valid = [i for i in crystals if verdicts[i].valid]
    log.info("Describing %s crystals", f"{len(crystals) + len(test):,}")
    ours = describe(list(crystals.values()), options.progress)
    theirs = describe(list(test.values()), options.progress)
    ours_valid = ours.part([n for n, i in enumerate(crystals) if verdicts[i].valid])
    num_test = len(reference if test_reference is None else test_reference)
    metrics = {
        "num_generated": len(generated),
        "num_reference": len(known),
        "num_test_reference": len(test),
        **validity_figures(verdicts),
        "valid_structure_reference": len(test) / num_test,
        **composition_figures(generated, list(test.values())),
        **plausibility(ours, theirs),
        **novelty_figures(verdicts, uniqueness.groups),
        "match_timeouts": sum(part.unanswered.values()) + sum(uniqueness.unanswered.values()),
        **_fingerprint_figures(options, part, crystals, valid, len(generated), cutoffs, scale),
        **distances(ours_valid, theirs),
        **_floor(None if test_reference is None else known, theirs, len(valid), seed),
        "matcher": opened.name,
        "tolerances": asdict(options.settings),
        "cutoffs": asdict(cutoffs),
        "smact_version": version("smact"),
    }
    counts = {
        **dict.fromkeys(_SHARES_OF_ALL, len(generated)),
        **dict.fromkeys(_SHARES_OF_VALID, len(crystals)),
        **dict.fromkeys(_SHARES_OF_REFERENCE, len(test)),
        "cov_recall": len(_succeeded(part.test_fingerprints)),
        "valid_structure_reference": num_test,
    }
    return Evaluation(
        with_intervals(metrics, counts, seed),
        verdicts,
        part,
        list(crystals),
        ours,
        list(known),
        list(test),
        theirs,
    )


def _fingerprint_figures(
    options: EvaluationOptions,
    part: Part,
    judged: Iterable[int],
    valid: Iterable[int],
    num_generated: int,
    cutoffs: CoverageCutoffs,
    scale: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    """Coverage, AMD distances and numbers of failures; all None without fingerprints.

    Args:
        options, part, cutoffs, scale: see `evaluate_generated`.
        judged, valid: indices of the crystals that are structurally valid, and of those that have
            a valid composition, too.
        num_generated: number of all generated crystals.
    """
    if not options.fingerprints:
        return dict.fromkeys((*_FINGERPRINT_FIGURES, *AMD_DISTANCES))
    found, test_found = part.fingerprints, _succeeded(part.test_fingerprints)
    ours: Any = [found[i] for i in judged]
    ours_valid: Any = [found[i] for i in valid]
    return {
        "fingerprint_failures": len(found) - len(ours),
        "reference_fingerprint_failures": len(part.test_fingerprints) - len(test_found),
        **coverage(ours, test_found, cutoffs, num_generated, scale),
        **amd_distances(ours_valid, test_found),
    }


def _succeeded(fingerprints: Mapping[int, Fingerprint | str]) -> list[Fingerprint]:
    """Those of the crystals that have one, in the order of the crystals, not of parts."""
    ordered = [fingerprints[i] for i in sorted(fingerprints)]
    return [each for each in ordered if not isinstance(each, str)]


def _composition_fingerprints(structures: Sequence[Structure]) -> list[np.ndarray]:
    library = load_fingerprints()
    return [library.composition_fingerprint(strip_annotations(s).composition) for s in structures]


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
