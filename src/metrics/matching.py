"""Match rates and RMSE of reconstructions, and the choice of the matcher that judges them.

`fast` is the matcher of this project, `src.metrics.structure_matching`, and the default;
`pymatgen` is pymatgen's StructureMatcher, in the worker processes of `MatcherPool`. Both come to
the same verdicts. This module imports neither torch nor pymatgen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias, overload

from src.metrics.matcher_pool import Matcher, MatcherPool, rms_distance
from src.metrics.structure_matching.calls import FirstMatch, first_match, match
from src.metrics.structure_matching.crystals import prepare
from src.metrics.structure_matching.judging import WORK_PER_SECOND, Pairs, Workers
from src.metrics.structure_matching.settings import (
    CDVAE,
    PYMATGEN,
    UNREDUCED,
    MatcherSettings,
    PairResult,
    Status,
    UnreducedSettings,
)
from src.utils.errors import UserError

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from src.metrics.structure_matching.crystals import AnyCrystals

__all__ = [
    "CDVAE",
    "PYMATGEN",
    "UNREDUCED",
    "FastMatcher",
    "MatchSummary",
    "Matcher",
    "MatcherPool",
    "MatcherSettings",
    "PairResult",
    "Status",
    "UnreducedSettings",
    "match_pairs",
    "open_matcher",
    "rms_distance",
    "summarize",
]

logger = logging.getLogger(__name__)

FAST = "fast"


@dataclass(frozen=True, slots=True)
class MatchSummary:
    """Figures over all pairs; every pair counts, whatever its status.

    Attributes:
        match_rate: Fraction of pairs that matched, 0 to 1; NaN if there are no pairs.
        rmse: Mean rms over the matched pairs only; NaN if none matched.
        crmse: Mean over all pairs of the rms, or `stol` where the pair did not match
            (arXiv:2509.12178), so that failing on hard crystals does not pay; NaN if no pairs.
            A crystal is charged its own pair here, where that paper takes the best match among
            all predictions; see `src.metrics.reconstruction.tables.metre` for that share.
        num_pairs: Count of all pairs.
        num_timeouts: Of those that ran out of time.
        num_crashed: Of those whose worker died.
        num_errors: Of those that are missing or invalid, or on which the matcher raised.
    """

    match_rate: float
    rmse: float
    crmse: float
    num_pairs: int
    num_timeouts: int
    num_crashed: int
    num_errors: int


def summarize(results: Sequence[PairResult], settings: MatcherSettings) -> MatchSummary:
    """Sum up results that were computed with `settings` (its `stol` is the charge in cRMSE)."""
    statuses = [result.status for result in results]
    rms = [result.rms for result in results if result.rms is not None]
    num_unmatched = len(results) - len(rms)
    return MatchSummary(
        match_rate=_ratio(len(rms), len(results)),
        rmse=_ratio(math.fsum(rms), len(rms)),
        crmse=_ratio(math.fsum(rms) + settings.stol * num_unmatched, len(results)),
        num_pairs=len(results),
        num_timeouts=statuses.count("timeout"),
        num_crashed=statuses.count("crashed"),
        num_errors=statuses.count("error"),
    )


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


class FastMatcher:
    """The matcher of this project, with the calls of a `MatcherPool`.

    Nothing it does can hang, so it works in this process. Where there is much to do, it starts
    workers, which stay until `close` or the end of the `with` block.

    Args:
        num_workers: None for one per CPU that this process may use, at most 16; with 0 or 1, there
            are none.
        timeout: Limit for one pair under one settings, in seconds of one core. It is compared with
            an estimate made beforehand (`WORK_PER_SECOND`), not with a clock: a pair that is over
            it is not begun, here and on every other machine.

    Raises:
        UserError: If num_workers is negative or timeout is not positive.
    """

    name: ClassVar[str] = FAST

    def __init__(self, num_workers: int | None = None, *, timeout: float = 10.0) -> None:
        if not timeout > 0:
            raise UserError(f"timeout must be a positive number of seconds, got {timeout}")
        self.workers = Workers(num_workers)
        self.timeout = timeout

    def __enter__(self) -> FastMatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. What comes later would start new ones."""
        self.workers.close()

    @overload
    def match(
        self,
        targets: AnyCrystals,
        predictions: AnyCrystals,
        settings: MatcherSettings = ...,
        *,
        pairs: Pairs | None = ...,
        progress: bool | str = ...,
    ) -> list[PairResult]: ...

    @overload
    def match(
        self,
        targets: AnyCrystals,
        predictions: AnyCrystals,
        settings: Sequence[MatcherSettings],
        *,
        pairs: Pairs | None = ...,
        progress: bool | str = ...,
    ) -> list[list[PairResult]]: ...

    def match(
        self,
        targets: AnyCrystals,
        predictions: AnyCrystals,
        settings: MatcherSettings | Sequence[MatcherSettings] = CDVAE,
        *,
        pairs: Pairs | None = None,
        progress: bool | str = False,
    ) -> list[PairResult] | list[list[PairResult]]:
        """`src.metrics.match`, which see, with a warning that names each pair over the limit."""
        targets = prepare(targets)
        several = [settings] if isinstance(settings, MatcherSettings) else settings
        try:
            found = match(
                predictions,
                targets,
                several,
                pairs=pairs,
                max_work=self.timeout * WORK_PER_SECOND,
                num_workers=self.workers,
                progress=progress,
            )
        except BaseException:
            self.close()
            raise
        for results in found:
            for k, result in enumerate(results):
                if result.status == "timeout":
                    formula = targets.formula_text(pairs[k][1] if pairs else k)
                    logger.warning("pair %d (%s): timeout, %s", k, formula, result.message)
        return found[0] if isinstance(settings, MatcherSettings) else found

    def first_match(
        self,
        queries: AnyCrystals,
        references: AnyCrystals | None,
        settings: MatcherSettings = PYMATGEN,
        *,
        progress: bool | str = False,
    ) -> list[FirstMatch]:
        """`src.metrics.first_match`, which see."""
        try:
            return first_match(
                queries,
                references,
                settings,
                max_work=self.timeout * WORK_PER_SECOND,
                num_workers=self.workers,
                progress=progress,
            )
        except BaseException:
            self.close()
            raise


AnyMatcher: TypeAlias = FastMatcher | MatcherPool
MATCHERS: dict[str, type[FastMatcher] | type[MatcherPool]] = {
    FAST: FastMatcher,
    "pymatgen": MatcherPool,
}


def open_matcher(
    name: str = FAST, num_workers: int | None = None, timeout: float = 10.0
) -> AnyMatcher:
    """A matcher by its name in configs, `fast` or `pymatgen`.

    Args:
        name: One of `MATCHERS`.
        num_workers, timeout: See there.

    Raises:
        UserError: If there is no such matcher, num_workers is negative or timeout not positive.
    """
    if name not in MATCHERS:
        raise UserError(f"matcher must be {' or '.join(MATCHERS)}, not {name}")
    return MATCHERS[name](num_workers, timeout=timeout)


@overload
def match_pairs(
    targets: Sequence[Structure],
    predictions: Sequence[Structure | None],
    settings: MatcherSettings = ...,
    *,
    num_workers: int | None = ...,
    timeout: float = ...,
    progress: bool | str = ...,
    matcher: str = ...,
) -> list[PairResult]: ...


@overload
def match_pairs(
    targets: Sequence[Structure],
    predictions: Sequence[Structure | None],
    settings: Sequence[MatcherSettings],
    *,
    num_workers: int | None = ...,
    timeout: float = ...,
    progress: bool | str = ...,
    matcher: str = ...,
) -> list[list[PairResult]]: ...


def match_pairs(
    targets: Sequence[Structure],
    predictions: Sequence[Structure | None],
    settings: MatcherSettings | Sequence[MatcherSettings] = CDVAE,
    *,
    num_workers: int | None = None,
    timeout: float = 10.0,
    progress: bool | str = False,
    matcher: str = FAST,
) -> list[PairResult] | list[list[PairResult]]:
    """The results of a matcher that `open_matcher` opens for this call only.

    Args:
        targets, predictions, settings, progress: See `FastMatcher.match` and `MatcherPool.match`.
        num_workers, timeout, matcher: See `open_matcher`.
    """
    with open_matcher(matcher, num_workers, timeout) as opened:
        return opened.match(targets, predictions, settings, progress=progress)
