"""Compare crystals that were generated for given compositions with the real ones, pair by pair.

This is what takes long in `src.metrics.generation.prediction.evaluate_prediction`, and can be done
in parts.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pymatgen.core import Composition, Structure

from src.data.crystal import CrystalError
from src.data.structures import to_crystal, to_structure
from src.metrics import PreparedCrystals
from src.metrics.matching import CDVAE, AnyMatcher, FastMatcher, MatcherSettings
from src.metrics.reconstruction.tables import MAX_METRE_PAIRS
from src.utils.errors import UserError
from src.utils.formulas import full_formula, reduced_formula
from src.utils.shards import part_of

log = logging.getLogger(__name__)

POLYMORPHS = ("each", "once")
_MAX_NAMED = 20  # compositions in a message

Pair = tuple[int, int]  # of a sample and a reference crystal


@dataclass(frozen=True, slots=True)
class Sample:
    """A generated crystal.

    Attributes:
        id: its name.
        composition: of its cell.
        structure: None if it could not be built or written, for example because a number is not
            finite; such a sample matches nothing.
    """

    id: str
    composition: Composition
    structure: Structure | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which samples are compared with which reference crystals.

    Attributes:
        units: what counts once, a reference crystal or a formula: the indices of its samples, in
            order, and of its reference crystals.
        k: how many samples of a unit count.
        firsts: the pairs for METRe; None if that is left out.
        pairs: all pairs, each once.
        unassigned: indices of the samples of no reference's composition.
    """

    units: list[tuple[list[int], list[int]]]
    k: int
    firsts: list[Pair] | None
    pairs: list[Pair]
    unassigned: list[int]


@dataclass(frozen=True, slots=True)
class Compared:
    """What the matcher found.

    Attributes:
        rms: of each pair, infinite without a match; dimensionless.
        timeouts: number of pairs without a result.
    """

    rms: dict[Pair, float]
    timeouts: int


def assign(
    samples: Sequence[Composition], references: Sequence[Composition]
) -> tuple[list[list[int]], list[int]]:
    """Assign samples to the reference crystals that they were generated for, by composition.

    A sample belongs to the crystals whose cell has the same composition or, if there are none, to
    those with the same reduced formula. Of several, it goes to the one with the fewest samples so
    far, the first of these. So if samples were generated for the list of all compositions, once or
    several times over, each goes to the crystal that it was generated for.

    Args:
        samples: compositions of their cells.
        references: the same.

    Returns:
        For each reference crystal, the indices of its samples; and those of the samples that belong
        to none.
    """
    of_cell, of_formula = defaultdict(list), defaultdict(list)
    for j, composition in enumerate(references):
        of_cell[full_formula(composition)].append(j)
        of_formula[reduced_formula(composition)].append(j)
    assigned: list[list[int]] = [[] for _ in references]
    rest = []
    for i, composition in enumerate(samples):
        candidates = of_cell.get(full_formula(composition)) or of_formula.get(
            reduced_formula(composition)
        )
        if candidates:
            assigned[min(candidates, key=lambda j: len(assigned[j]))].append(i)
        else:
            rest.append(i)
    return assigned, rest


def plan_comparisons(
    samples: Sequence[Sample],
    references: Sequence[Structure],
    matcher: str,
    k: int | None,
    polymorphs: str,
) -> Plan:
    """Decide what is compared; warns of crystals without a sample, and of samples left out.

    Args:
        samples, references, k, polymorphs: see `evaluate_prediction`.
        matcher: the name of the matcher, on which it depends whether METRe is left out.

    Raises:
        UserError: as `evaluate_prediction`.
    """
    if polymorphs not in POLYMORPHS:
        raise UserError(f"polymorphs must be {' or '.join(POLYMORPHS)}, not {polymorphs!r}")
    if k is not None and k < 1:
        raise UserError(f"k must be at least 1, not {k}")
    if not references:
        raise UserError("there are no reference crystals")
    formulas = [reduced_formula(structure.composition) for structure in references]
    assigned, rest = assign(
        [sample.composition for sample in samples],
        [structure.composition for structure in references],
    )
    if not any(assigned):
        raise UserError(
            f"none of the {len(samples):,} samples has the composition of one of the "
            f"{len(references):,} reference crystals: is this the reference that they were "
            "generated for?"
        )
    _warn(samples, references, assigned, rest)
    units = _units(formulas, assigned, polymorphs)
    k = k or max(len(samples_of) for samples_of, _ in units)
    own = [(i, j) for samples_of, members in units for i in samples_of[:k] for j in members]
    firsts = _metre_pairs(formulas, assigned, matcher)
    return Plan(units, k, firsts, list(dict.fromkeys([*own, *(firsts or ())])), rest)


def compare_part(
    samples: Sequence[Sample],
    references: Sequence[Structure],
    matcher: AnyMatcher,
    *,
    number: int = 1,
    count: int = 1,
    k: int | None = None,
    polymorphs: str = "each",
    settings: MatcherSettings = CDVAE,
    progress: bool = False,
) -> Compared:
    """Do one of `count` equal parts of the comparisons in `evaluate_prediction`, which see.

    Args:
        number: of the part, 1 to `count`.
        count: of the parts, which `join_compared` puts together.

    Raises:
        UserError: as `evaluate_prediction`.
    """
    plan = plan_comparisons(samples, references, matcher.name, k, polymorphs)
    chosen = [plan.pairs[n] for n in part_of(len(plan.pairs), number, count)]
    return compare_pairs(samples, references, chosen, matcher, settings, progress)


def join_compared(parts: Sequence[Compared]) -> Compared:
    """The results of all parts together."""
    rms = {pair: value for part in parts for pair, value in part.rms.items()}
    return Compared(rms, sum(part.timeouts for part in parts))


def _units(
    formulas: Sequence[str], assigned: Sequence[list[int]], polymorphs: str
) -> list[tuple[list[int], list[int]]]:
    """What counts once: the indices of its samples, in order, and of its reference crystals."""
    if polymorphs == "each":
        return [(samples, [j]) for j, samples in enumerate(assigned)]
    members = defaultdict(list)
    for j, formula in enumerate(formulas):
        members[formula].append(j)
    return [(sorted(i for j in group for i in assigned[j]), group) for group in members.values()]


def _metre_pairs(
    formulas: Sequence[str], assigned: Sequence[list[int]], matcher: str
) -> list[Pair] | None:
    """The first sample of each crystal with all crystals of the same reduced formula."""
    firsts: dict[str, list[int]] = defaultdict(list)
    for formula, samples in zip(formulas, assigned, strict=True):
        firsts[formula] += samples[:1]
    times = Counter(formulas)
    count = sum(len(samples) * times[formula] for formula, samples in firsts.items())
    if count > MAX_METRE_PAIRS[matcher] * len(formulas):
        log.warning("METRe is left out: it would take %s comparisons", f"{count:,}")
        return None
    return [(i, j) for j, formula in enumerate(formulas) for i in firsts[formula]]


def compare_pairs(
    samples: Sequence[Sample],
    references: Sequence[Structure],
    pairs: Sequence[Pair],
    matcher: AnyMatcher,
    settings: MatcherSettings,
    progress: bool,
) -> Compared:
    """Compare samples with reference crystals, each pair of indices once."""
    predictions: Any = [_plain(sample.structure) for sample in samples]
    targets: Any = [_plain(structure) for structure in references]
    if isinstance(matcher, FastMatcher):
        predictions, targets = PreparedCrystals(predictions), PreparedCrystals(targets)
    results = matcher.match(
        targets, predictions, settings, pairs=list(pairs), progress=progress and "matching"
    )
    rms = {
        pair: math.inf if result.rms is None else result.rms
        for pair, result in zip(pairs, results, strict=True)
    }
    return Compared(rms, sum(result.status in ("timeout", "crashed") for result in results))


def _plain(structure: Structure | None) -> Structure | None:
    """Without oxidation states and properties, which would prevent matches; None if disordered."""
    try:
        return None if structure is None else to_structure(to_crystal(structure))
    except CrystalError:
        return None


def _warn(
    samples: Sequence[Sample],
    references: Sequence[Structure],
    assigned: Sequence[list[int]],
    rest: Sequence[int],
) -> None:
    without = [references[j].composition for j, found in enumerate(assigned) if not found]
    if without:
        log.warning(
            "%d of %d reference crystals have no sample and count as not matched: %s",
            len(without), len(references), _named(without),
        )  # fmt: skip
    if rest:
        log.warning(
            "%d samples have the composition of no reference crystal and are left out: %s",
            len(rest), _named([samples[i].composition for i in rest]),
        )  # fmt: skip


def _named(compositions: Sequence[Composition]) -> str:
    names = list(dict.fromkeys(full_formula(composition) for composition in compositions))
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
