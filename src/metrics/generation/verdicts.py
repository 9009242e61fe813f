"""The result for each generated crystal, and the shares of crystals that follow from it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pymatgen.core import Structure

from src.metrics.generation.intervals import fraction
from src.metrics.generation.judging import Part, Uniqueness
from src.metrics.generation.validity import is_valid_composition
from src.utils.formulas import reduced_formula

log = logging.getLogger(__name__)


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


def make_verdicts(
    generated: Sequence[Structure],
    crystals: Mapping[int, Structure],
    invalid: Mapping[int, str],
    known: Mapping[int, Structure],
    part: Part,
    uniqueness: Uniqueness,
) -> list[Verdict]:
    """One verdict for each generated crystal.

    Args:
        generated: all crystals.
        crystals: those that are structurally valid, by index, without annotations.
        invalid: what is wrong with each of the others.
        known: the valid crystals of the reference.
        part: the results for all crystals.
        uniqueness: the comparison of `crystals` among themselves.
    """
    formulas_known = {reduced_formula(crystal.composition) for crystal in known.values()}
    unanswered = Counter(part.unanswered) + Counter(uniqueness.unanswered)
    reasons = {i: f"{count} comparisons without a result" for i, count in unanswered.items()}
    return [
        Verdict(
            i in crystals,
            structure.is_ordered and is_valid_composition(structure.composition),
            uniqueness.duplicate_of.get(i),
            part.known_as.get(i),
            invalid.get(i) or reasons.get(i, ""),
            reduced_formula(crystals.get(i, structure).composition) in formulas_known,
            part.known_prototypes.get(i),
        )
        for i, structure in enumerate(generated)
    ]


def validity_figures(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """`valid_structure`, `valid_composition` and `valid` of all generated crystals."""
    names = ("valid_structure", "valid_composition", "valid")
    return {name: fraction([getattr(v, name) for v in verdicts]) for name in names}


def novelty_figures(
    verdicts: Sequence[Verdict], groups: Sequence[int] | None
) -> dict[str, float | None]:
    """The shares of unique and of novel crystals; `evaluate_generated` says what they mean.

    Args:
        verdicts: of all generated crystals, at least one.
        groups: see `Uniqueness`.
    """
    judged = [verdict for verdict in verdicts if verdict.valid_structure]
    if not judged:
        log.warning("No generated crystal is structurally valid: uniqueness and novelty are null")
    prototypes = [v.known_prototype for v in judged]
    return {
        "unique": fraction([v.unique for v in judged]),
        # of different crystals, whatever their order; null: too many pairs to compare
        "unique_groups": len(set(groups)) / len(groups) if groups else None,
        "novel": fraction([v.novel for v in judged]),
        "novel_composition": fraction([v.novel and not v.known_composition for v in judged]),
        "novel_structure": fraction([v.novel and v.known_composition for v in judged]),
        "novel_prototype": None
        if None in prototypes
        else fraction([known is False for known in prototypes]),
        "unique_and_novel": fraction([v.unique and v.novel for v in judged]),
        "valid_unique_and_novel": fraction([v.valid and v.unique and v.novel for v in verdicts]),
    }


def composition_figures(
    generated: Sequence[Structure], test: Sequence[Structure]
) -> dict[str, float | None]:
    """Shares of compositions that SMACT accepts, by its own defaults and of real crystals."""
    compositions = [s.composition if s.is_ordered else None for s in generated]
    real = [s.composition for s in test]
    accepted = [c is not None and is_valid_composition(c, as_cdvae=False) for c in compositions]
    return {
        "valid_composition_smact": fraction(accepted),
        "valid_composition_reference": fraction([is_valid_composition(c) for c in real]),
        "valid_composition_smact_reference": fraction(
            [is_valid_composition(c, as_cdvae=False) for c in real]
        ),
    }
