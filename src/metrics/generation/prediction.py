"""Judge crystals that were generated for given compositions by the real crystals with these.

This is crystal structure prediction: each reference crystal has some samples of its composition,
and the question is whether they find it. Definitions and their sources:

- A reference crystal is matched if one of its first k samples matches it, and its rms is the
  smallest of those that match. The RMSE is the mean over matched crystals. These are the match rate
  and RMSE of CDVAE (Xie et al., ICLR 2022) for one sample, and of DiffCSP (Jiao et al., NeurIPS
  2023) for several.
- cRMSE and METRe are from "All that structure matches does not glitter" (arXiv:2509.12178). METRe
  compares each reference crystal with all samples, one for each reference crystal, and counts it if
  any of them matches. A cRMSE charges an unmatched crystal the matcher's `stol`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pymatgen.core import Structure

from src.metrics.generation.intervals import (
    interval_name,
    mean_interval,
    share_interval,
    with_intervals,
)
from src.metrics.generation.predicted_pairs import (
    MAX_METRE_PAIRS,
    POLYMORPHS,
    Compared,
    Pair,
    Sample,
    assign,
    compare_pairs,
    compare_part,
    join_compared,
    plan_comparisons,
)
from src.metrics.generation.validity import invalid_reason, is_valid_composition
from src.metrics.matching import CDVAE, AnyMatcher, MatcherSettings

__all__ = [  # some are of `predicted_pairs`, and can be imported from here too
    "MAX_METRE_PAIRS",
    "POLYMORPHS",
    "Compared",
    "Pair",
    "Sample",
    "Verdict",
    "assign",
    "by_num_atoms",
    "compare_part",
    "evaluate_prediction",
    "join_compared",
]


@dataclass(slots=True)
class Verdict:
    """What the samples of one reference crystal are worth.

    Attributes:
        samples: indices of its samples, in order.
        rms: (n,) of the first k of these with it, or infinite without a match; dimensionless. If
            polymorphs count once, of all samples of the composition with the polymorph that is
            nearest to each.
        valid: (n,) whether these are valid.
        best_of_all: smallest rms with the first samples of all reference crystals, for METRe; None
            if it is not known.
    """

    samples: list[int]
    rms: np.ndarray = field(default_factory=lambda: np.empty(0))
    valid: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    best_of_all: float | None = None

    def best(self, k: int, only_valid: bool = False) -> float:
        """The smallest rms of the first k samples; infinite if none of them matches."""
        rms = np.where(self.valid, self.rms, np.inf) if only_valid else self.rms
        return float(rms[:k].min(initial=np.inf))


def evaluate_prediction(
    samples: Sequence[Sample],
    references: Sequence[Structure],
    matcher: AnyMatcher,
    *,
    k: int | None = None,
    polymorphs: str = "each",
    settings: MatcherSettings = CDVAE,
    seed: int = 0,
    compared: Compared | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], list[Verdict]]:
    """Evaluate samples for the compositions of reference crystals.

    Args:
        samples: in the order in which they were generated.
        references: ordered crystals.
        matcher: see `open_matcher`.
        k: how many samples of a crystal count; None for as many as the crystal with most has.
        polymorphs: `each`: every reference crystal counts, with the samples that `assign` gives it,
            as in published figures. `once`: each reduced formula counts once, and is matched if one
            of its samples matches any of its crystals; k then counts samples of the formula.
        settings: tolerances.
        seed: of the intervals.
        compared: the results of `compare_part` for all parts, from `join_compared`; None to compare
            them here.
        progress: show a progress bar.

    Returns:
        A dict of figures, and one `Verdict` for each reference crystal.

        - `match_at_K`, `rmse_at_K`, `crmse_at_K` for K of 1 and k: the share of crystals that are
          matched, the mean rms of these, and the mean over all in which an unmatched one counts
          as `stol`. A crystal without a sample is not matched. With the suffix `_valid`, only
          samples count that are valid in structure and in composition.
        - `metre`, `metre_crmse`: with the first sample of each crystal; None if that takes more
          than `MAX_METRE_PAIRS` comparisons per crystal.
        - for each of these, `NAME_interval`; see `src.metrics.generation.intervals`.
        - `by_num_atoms`: number of `crystals`, match rates and RMSE by `num_atoms`, a list.
        - `valid_structure`, `valid_composition`, `valid`: shares of the samples.
        - `num_references`, `num_samples`, `num_counted` (reference crystals or formulas),
          `num_without_sample`, `num_with_fewer` (than k samples, but at least one),
          `num_unassigned` (samples of no reference's composition), `num_not_built`,
          `match_timeouts` (pairs without a result).
        - `k`, `polymorphs`, `matcher`, `tolerances`.

    Raises:
        UserError: if there is no reference crystal, if no sample has the composition of one, if k
            is less than 1, or `polymorphs` is not one of `POLYMORPHS`.
    """
    plan = plan_comparisons(samples, references, matcher.name, k, polymorphs)
    if compared is None:
        compared = compare_pairs(samples, references, plan.pairs, matcher, settings, progress)
    rms, units, k = compared.rms, plan.units, plan.k
    is_valid = np.array([_validity(sample) for sample in samples], dtype=bool)
    both = is_valid[:, 0] & is_valid[:, 1]
    verdicts = _verdicts(len(references), units, k, rms, both)
    if plan.firsts is not None:
        _add_best_of_all(verdicts, plan.firsts, rms)
    heads = [members[0] for _, members in units]
    judged, sizes = [verdicts[j] for j in heads], [len(references[j]) for j in heads]
    lengths = [len(verdict.samples) for verdict in judged]
    figures = {
        **_figures(judged, k, settings, seed),
        **_metre_figures(verdicts, settings, seed),
        "by_num_atoms": by_num_atoms(judged, sizes, k, settings),
        "valid_structure": float(is_valid[:, 0].mean()),
        "valid_composition": float(is_valid[:, 1].mean()),
        "valid": float(both.mean()),
        "num_references": len(references),
        "num_samples": len(samples),
        "num_counted": len(judged),
        "num_without_sample": lengths.count(0),
        "num_with_fewer": sum(0 < length < k for length in lengths),
        "num_unassigned": len(plan.unassigned),
        "num_not_built": sum(sample.structure is None for sample in samples),
        "match_timeouts": compared.timeouts,
        "k": k,
        "polymorphs": polymorphs,
        "matcher": matcher.name,
        "tolerances": asdict(settings),
    }
    counts = dict.fromkeys(("valid_structure", "valid_composition", "valid"), len(samples))
    return with_intervals(figures, counts, seed), verdicts


def _verdicts(
    count: int,
    units: Sequence[tuple[list[int], list[int]]],
    k: int,
    rms: dict[Pair, float],
    is_valid: np.ndarray,
) -> list[Verdict]:
    """One for each reference crystal; see `Verdict`."""
    verdicts = [Verdict([]) for _ in range(count)]
    for samples_of, members in units:
        counted = samples_of[:k]
        best = np.array([min(rms[i, j] for j in members) for i in counted], dtype=float)
        for j in members:
            verdicts[j] = Verdict(samples_of, best, is_valid[counted])
    return verdicts


def _add_best_of_all(
    verdicts: Sequence[Verdict], pairs: Sequence[Pair], rms: dict[Pair, float]
) -> None:
    best: dict[int, float] = {}
    for i, j in pairs:
        best[j] = min(best.get(j, math.inf), rms[i, j])
    for j, verdict in enumerate(verdicts):
        verdict.best_of_all = best.get(j, math.inf)


def by_num_atoms(
    verdicts: Sequence[Verdict], sizes: Sequence[int], k: int, settings: MatcherSettings
) -> list[dict[str, Any]]:
    """The figures for each number of atoms in the cell, without intervals.

    Args:
        verdicts: of the crystals.
        sizes: numbers of atoms of the same.
        k, settings: see `evaluate_prediction`.
    """
    groups: dict[int, list[Verdict]] = defaultdict(list)
    for verdict, size in zip(verdicts, sizes, strict=True):
        groups[size].append(verdict)
    return [
        {"num_atoms": size, "crystals": len(group), **_figures(group, k, settings, None)}
        for size, group in sorted(groups.items())
    ]


def _validity(sample: Sample) -> tuple[bool, bool]:
    valid = sample.structure is not None and invalid_reason(sample.structure) is None
    return valid, is_valid_composition(sample.composition)


def _figures(
    verdicts: Sequence[Verdict], k: int, settings: MatcherSettings, seed: int | None
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for count in dict.fromkeys((1, k)):
        for suffix, only_valid in (("", False), ("_valid", True)):
            best = np.array([verdict.best(count, only_valid) for verdict in verdicts])
            names = [f"{name}_at_{count}{suffix}" for name in ("match", "rmse", "crmse")]
            figures |= _of_best(best, names, settings, seed)
    return figures


def _metre_figures(
    verdicts: Sequence[Verdict], settings: MatcherSettings, seed: int
) -> dict[str, Any]:
    best = [verdict.best_of_all for verdict in verdicts]
    names = ["metre", "", "metre_crmse"]
    if None in best:
        return {
            key: None for name in ("metre", "metre_crmse") for key in (name, interval_name(name))
        }
    return _of_best(np.array(best, float), names, settings, seed)


def _of_best(
    best: np.ndarray, names: Sequence[str], settings: MatcherSettings, seed: int | None
) -> dict[str, Any]:
    """Match rate, RMSE and cRMSE of the best rms of each crystal, under three names.

    Args:
        best: (n,), infinite where nothing matches.
        names: an empty one is left out.
        seed: of the intervals; None for no intervals.
    """
    matched = np.isfinite(best)
    rms, charged = best[matched], np.where(matched, best, settings.stol)
    rate = float(matched.mean())
    values = (rate, float(rms.mean()) if len(rms) else None, float(charged.mean()))
    figures: dict[str, Any] = {}
    for name, value, spread in zip(names, values, (None, rms, charged), strict=True):
        if not name:
            continue
        figures[name] = value
        if seed is None:
            continue
        if spread is None:
            interval: Any = share_interval(rate, len(best), seed)
        else:
            interval = mean_interval(spread, seed) if len(spread) else None
        figures[interval_name(name)] = interval
    return figures
