"""Judge crystals one by one, or in parts: fingerprints, novelty, known prototypes, uniqueness.

This is what takes long in `src.metrics.generation.evaluate.evaluate_generated`, which takes figures
of the results.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pymatgen.core import Structure

from src.data.structures import to_crystal, to_structure
from src.metrics import PreparedCrystals
from src.metrics.generation.matches import connected_groups, first_matches
from src.metrics.generation.prototypes import has_known_prototype
from src.metrics.generation.validity import is_valid_structure
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

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How crystals are judged.

    Attributes:
        settings: matcher tolerances for uniqueness and novelty. Most papers use pymatgen's defaults
            for these two, and CDVAE's wider tolerances for reconstruction only.
        matcher, num_workers: see `open_matcher`.
        match_timeout, fingerprint_timeout: time limits in seconds, per pair and per crystal.
        fingerprints: whether to compute fingerprints, for coverage and AMD, which takes longest.
        prototypes: whether to look for known prototypes, which takes longer than the rest of
            novelty; they are always judged by the `fast` matcher.
        progress: whether to show progress bars.
    """

    settings: MatcherSettings = PYMATGEN
    matcher: str = "fast"
    num_workers: int | None = None
    match_timeout: float = 10.0
    fingerprint_timeout: float = 60.0
    fingerprints: bool = True
    prototypes: bool = True
    progress: bool = False

    def open_matcher(self) -> AnyMatcher:
        """The matcher, which starts no process yet.

        Raises:
            UserError: if there is no matcher of this name.
        """
        return open_matcher(self.matcher, self.num_workers, self.match_timeout)


@dataclass(frozen=True, slots=True)
class Part:
    """The results for some of the crystals.

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


@dataclass(frozen=True, slots=True)
class Uniqueness:
    """Which crystals match others of the same set.

    Attributes:
        duplicate_of: for each crystal that matches an earlier one, the index of that.
        groups: the `connected_groups` of all crystals; None if there are too many pairs to compare.
        unanswered: for crystals, the number of others for which the matcher returned no result.
    """

    duplicate_of: dict[int, int]
    groups: list[int] | None
    unanswered: dict[int, int]


def evaluate_part(
    generated: Sequence[Structure],
    reference: Sequence[Structure],
    test_reference: Sequence[Structure] | None = None,
    *,
    number: int,
    count: int,
    options: EvaluationOptions | None = None,
    **changes: Any,
) -> Part:
    """Do one of `count` equal parts of what takes long in `evaluate_generated`, which see.

    Args:
        number: of the part, 1 to `count`.
        count: of the parts, which `join_parts` puts together.
        options: how to judge; None for the defaults.
        changes: fields of `EvaluationOptions` that replace those in `options`.

    Raises:
        UserError, ImportError: as `evaluate_generated`.
    """
    options = replace(options or EvaluationOptions(), **changes)
    opened = options.open_matcher()
    known, test = valid_references(reference, test_reference)
    crystals = {
        i: strip_annotations(generated[i])
        for i in part_of(len(generated), number, count)
        if is_valid_structure(generated[i])
    }
    with opened:
        tests = list(test.values())
        part_of_test = {i: tests[i] for i in part_of(len(tests), number, count)}
        return judge(crystals, known, part_of_test, opened, options)


def join_parts(parts: Sequence[Part]) -> Part:
    """The results of all parts together."""
    names = Part.__slots__
    return Part(*({k: v for part in parts for k, v in getattr(part, n).items()} for n in names))


def judge(
    crystals: Mapping[int, Structure],
    known: Mapping[int, Structure],
    test: Mapping[int, Structure],
    opened: AnyMatcher,
    options: EvaluationOptions,
) -> Part:
    """Take fingerprints, and compare crystals with the known ones.

    Args:
        crystals: generated crystals with a valid geometry, by index.
        known: the valid crystals of the reference, by index.
        test: crystals of the test reference to take fingerprints of, by index.
        opened: the matcher, opened.
        options: how to judge.

    Raises:
        ImportError: if matminer is needed and not installed.
    """
    found, test_found = _fingerprints(crystals, test, options)
    judged = {i: s for i, s in crystals.items() if not isinstance(found.get(i), str)}
    log.info("Matching %s crystals", f"{len(judged):,}")
    indices, known_indices = list(judged), list(known)
    matches, unanswered = first_matches(
        list(judged.values()), list(known.values()), opened, options.settings, options.progress
    )
    known_as = {i: known_indices[j] for i, j in zip(indices, matches, strict=True) if j is not None}
    return Part(
        found,
        test_found,
        known_as,
        _known_prototypes(judged, known, known_as, options) if options.prototypes else {},
        {indices[n]: count for n, count in unanswered.items()},
    )


def find_duplicates_among(
    crystals: Mapping[int, Structure], opened: AnyMatcher, options: EvaluationOptions
) -> Uniqueness:
    """Compare the crystals of a set, by index, among themselves."""
    indices = list(crystals)  # first_matches returns positions in this list
    structures: Sequence[Structure] | PreparedCrystals = list(crystals.values())
    if isinstance(opened, FastMatcher):
        structures = PreparedCrystals(structures)
    duplicates, unanswered = first_matches(
        structures, None, opened, options.settings, options.progress
    )
    formulas = [reduced_formula(crystal.composition) for crystal in crystals.values()]
    return Uniqueness(
        {i: indices[j] for i, j in zip(indices, duplicates, strict=True) if j is not None},
        connected_groups(
            structures, formulas, opened, options.settings, duplicates, options.progress
        ),
        Counter({indices[n]: count for n, count in unanswered.items()}),
    )


def valid_references(
    reference: Sequence[Structure], test_reference: Sequence[Structure] | None
) -> tuple[dict[int, Structure], dict[int, Structure]]:
    """The valid crystals of the reference and of the test reference, by index.

    Raises:
        UserError: if one of them has no valid crystal.
    """
    known = _valid_by_index(reference, "training")
    test = known if test_reference is None else _valid_by_index(test_reference, "test")
    return known, test


def strip_annotations(structure: Structure) -> Structure:
    """Drop oxidation states, isotopes and properties, which would prevent matches."""
    return to_structure(to_crystal(structure))


def load_fingerprints() -> ModuleType:
    """The module of fingerprints, which is slow to import.

    Raises:
        ImportError: if matminer is not installed.
    """
    try:
        from src.metrics.generation import fingerprints
    except ImportError as error:
        raise ImportError(
            "matminer is needed for fingerprints: run pip install -e '.[generation]' in the "
            "project folder"
        ) from error
    return fingerprints


def _fingerprints(
    crystals: Mapping[int, Structure], test: Mapping[int, Structure], options: EvaluationOptions
) -> tuple[dict[int, Fingerprint | str], dict[int, Fingerprint | str]]:
    """Those of both sets, by index; empty if they are not asked for."""
    if not options.fingerprints:
        return {}, {}
    log.info("Computing fingerprints of %s crystals", f"{len(crystals) + len(test):,}")
    # both sets in one call, so that no worker idles between them
    results = load_fingerprints().compute_fingerprints(
        [*crystals.values(), *test.values()],
        num_workers=options.num_workers,
        timeout=options.fingerprint_timeout,
        progress=options.progress,
    )
    count = len(crystals)
    return (
        dict(zip(crystals, results[:count], strict=True)),
        dict(zip(test, results[count:], strict=True)),
    )


def _known_prototypes(
    crystals: Mapping[int, Structure],
    known: Mapping[int, Structure],
    known_as: Mapping[int, int],
    options: EvaluationOptions,
) -> dict[int, bool]:
    """Whether each crystal has a known prototype, as those have that match a known crystal."""
    asked = [i for i in crystals if i not in known_as]
    with FastMatcher(options.num_workers, timeout=options.match_timeout) as matcher:
        found = has_known_prototype(
            [crystals[i] for i in asked],
            list(known.values()),
            matcher,
            options.settings,
            options.progress,
        )
    return {**dict.fromkeys(known_as, True), **dict(zip(asked, found, strict=True))}


def _valid_by_index(structures: Sequence[Structure], name: str) -> dict[int, Structure]:
    """The structures with a valid geometry, by index."""
    valid = {i: strip_annotations(s) for i, s in enumerate(structures) if is_valid_structure(s)}
    if not valid:
        raise UserError(f"there are no valid crystals in the {name} reference")
    if left_out := len(structures) - len(valid):
        log.warning("Left out %d invalid crystals of the %s reference", left_out, name)
    return valid
