"""The search for the best match of two reduced crystals, for many pairs at once.

It follows pymatgen's `StructureMatcher` from `_preprocess` on: crystals are scaled to one volume;
each basis of the first lattice that resembles the second is tried, with each translation that puts
an atom of the rarest kind on the first such atom of the other crystal; atoms are assigned on the
average of both lattices, so that the sum of squared distances is least; and what is left after the
mean displacement is taken away counts.

Pairs differ in their numbers of atoms, bases and translations, so arrays are flat lists of lists.
B pairs, C bases, K trials (a basis and a translation), A atoms of all trials, E pairs of atoms of
the same kind of all trials.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from src.metrics.structure_matching.arrays import Floats, Integers, lists_times, ragged, slices
from src.metrics.structure_matching.lattices import (
    count_images,
    find_mappings,
    from_parameters,
    inverse_heights,
    lll_reduce,
    parameters,
    volumes,
)
from src.metrics.structure_matching.pairs import Pair, PairArrays, sort_atoms
from src.metrics.structure_matching.reduction import Cell
from src.metrics.structure_matching.trials import MAX_ENTRIES, Bases, try_arrays

logger = logging.getLogger(__name__)

PERFECT = 1e-5
"""pymatgen looks no further than at a match as good as this."""

_MAX_IMAGES = 500_000  # lattice points, for all pairs of a chunk
_MAX_PAIR_IMAGES = 200_000  # for one; more only where a cell is a hundred times as long as wide
_GOALS = {"rms": 0, "verdict": 1, "fit": 2}  # as the compiled loops know them


@dataclass(frozen=True, slots=True)
class Tolerances:
    """See `MatcherSettings`."""

    stol: float
    ltol: float
    angle_tol: float


Goal = Literal["rms", "verdict", "fit"]


class Outcome(NamedTuple):
    """What became of a pair.

    Attributes:
        rms: The least root-mean-square displacement over (V/N)^(1/3); None unless below `stol`, and
            None where only a verdict was asked for.
        matched: Whether the rms, or for a fit the largest displacement, is below `stol`.
        work: Trials times pairs of atoms of the same kind; what the time for a pair is made of.
        complete: False if the work was over the limit and the search was not done.
    """

    rms: float | None
    matched: bool
    work: float = 0.0
    complete: bool = True


UNMATCHED = Outcome(None, False)


def search(
    pairs: Sequence[tuple[Cell, Cell]],
    tolerances: Tolerances,
    max_work: float = np.inf,
    goal: Goal = "rms",
    compiled: bool | None = None,
) -> list[Outcome]:
    """Match reduced crystals.

    Args:
        pairs: Cells that `niggli_cells` or `primitive_cells` gave.
        tolerances: As `StructureMatcher` takes them.
        max_work: See `Outcome.work`; what exceeds it is left unmatched, and says so.
        goal: `rms` for what `StructureMatcher.get_rms_dist` gives; `verdict` for whether it gives
            anything, which takes less time; `fit` for `StructureMatcher.fit`.
        compiled: Whether Numba's loops do the work, or NumPy's; None for Numba's if there.
    """
    outcomes: list[Outcome] = [UNMATCHED] * len(pairs)
    sorted_pairs = [sort_atoms(i, first, second) for i, (first, second) in enumerate(pairs)]
    possible = [pair for pair in sorted_pairs if pair is not None]
    if not possible:
        return outcomes
    first = np.stack([pair.first.lattice for pair in possible])
    second = np.stack([pair.second.lattice for pair in possible])
    ratio = ((volumes(second) / volumes(first)) ** (1 / 6))[:, None, None]
    first, second = first * ratio, second / ratio
    lengths, angles = parameters(second)
    images = count_images(first, lengths.max(axis=1) * (1 + tolerances.ltol))
    for part in slices(np.where(images > _MAX_PAIR_IMAGES, np.inf, images), _MAX_IMAGES):
        if not images[part.start] <= _MAX_PAIR_IMAGES:
            index = possible[part.start].index
            outcomes[index] = Outcome(None, False, float(images[part.start]), complete=False)
            continue
        found = find_mappings(
            first[part],
            lengths[part],
            angles[part],
            np.full(part.stop - part.start, tolerances.ltol),
            tolerances.angle_tol,
        )
        same_volume = np.abs(np.abs(found.determinants) - 1) <= 0.5
        batch = _Batch(
            possible[part], first[part], lengths[part], angles[part], tolerances, goal, compiled
        )
        results = batch.match(found.owner[same_volume], found.bases[same_volume], max_work)
        for pair, outcome in zip(possible[part], results, strict=True):
            outcomes[pair.index] = outcome
    return outcomes


def has_numba() -> bool:
    """Whether the loops of `kernel` can be compiled here."""
    return _compiled_kernel() is not None


@lru_cache(maxsize=1)
def _compiled_kernel() -> Callable[..., None] | None:
    """None without Numba."""
    try:
        from src.metrics.structure_matching.kernel import evaluate
    except ImportError as error:  # not there, or not for this version of NumPy
        logger.warning("matching without Numba, which takes longer: %s", error)
        return None
    except RuntimeError as error:  # Numba found no folder that it may write to
        logger.warning("matching without Numba: %s; set NUMBA_CACHE_DIR", error)
        return None
    return evaluate


@lru_cache(maxsize=1)
def warm_up() -> None:
    """Compile the loops now, which takes seconds, once on a machine, and is no part of a match."""
    cell = Cell(np.eye(3), np.zeros(1, dtype=np.int64), np.zeros((1, 3)))
    search([(cell, cell)], Tolerances(0.3, 0.2, 5.0))


class _Batch:
    """Pairs that are matched together, laid out as flat arrays."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        lattices: Floats,
        lengths: Floats,
        angles: Floats,
        tolerances: Tolerances,
        goal: Goal,
        compiled: bool | None,
    ) -> None:
        """`lattices` are those of the first crystals, `lengths` and `angles` of the second."""
        self.pairs, self.lengths, self.angles, self.tolerances = pairs, lengths, angles, tolerances
        self.goal = goal
        self.best = np.full(len(pairs), tolerances.stol)
        self.done = np.zeros(len(pairs), dtype=bool)
        self.kernel = _compiled_kernel() if compiled in (None, True) else None
        self.arrays = PairArrays(pairs, lattices)

    def match(self, owner: Integers, bases: Floats, max_work: float) -> list[Outcome]:
        """The outcome of each pair, given the bases to try, (C,) and (C, 3, 3)."""
        effort = (self.arrays.num_translations * self.arrays.num_entries).astype(np.float64)
        work = np.bincount(owner, minlength=len(self.pairs)) * effort
        feasible = ~(work > max_work)
        owner, bases = owner[feasible[owner]], bases[feasible[owner]]
        rms, largest = np.full((2, len(self.pairs)), np.inf)
        for part in slices(effort[owner], MAX_ENTRIES) if len(owner) else ():
            now = ~self.done[owner[part]]
            if not now.any():
                continue
            pair, values, maxima = self._try(owner[part][now], bases[part][now])
            np.minimum.at(largest, pair, maxima)
            # pymatgen stops at the first that is perfect, not at the best
            order = np.flatnonzero(values < PERFECT)
            perfect, first = np.unique(pair[order], return_index=True)
            np.minimum.at(rms, pair, values)
            rms[perfect] = values[order[first]]
            if self.goal == "fit":
                self.done |= largest < self.tolerances.stol
            elif self.goal == "verdict":
                self.done |= rms < self.tolerances.stol
            else:
                self.done[perfect] = True
                np.minimum(self.best, rms, out=self.best)
        stol = self.tolerances.stol
        return [
            Outcome(
                float(rms[i]) if self.goal == "rms" and rms[i] < stol else None,
                bool((largest if self.goal == "fit" else rms)[i] < stol),
                float(work[i]),
                bool(feasible[i]),
            )
            for i in range(len(self.pairs))
        ]

    def _try(self, owner: Integers, bases: Floats) -> tuple[Integers, Floats, Floats]:
        """Try each translation with each basis.

        Returns:
            Of the trials in which each atom has a partner near by: the pair, rms and maximum.
        """
        prepared = self._prepare(owner, bases)
        if self.kernel is None:
            pair, _, rms, largest = try_arrays(self.arrays, owner, prepared)
            return pair, rms, largest
        counts = self.arrays.num_translations[owner]
        starts = np.cumsum(counts) - counts
        rms, largest = np.empty((2, counts.sum()))
        unsure = np.zeros(len(rms), dtype=bool)
        self.kernel(
            owner,
            prepared.starts,
            prepared.moving,
            prepared.reduced_moving,
            self.arrays.target,
            self.arrays.atom_starts,
            self.arrays.num_atoms,
            self.arrays.kind_starts,
            self.arrays.num_kinds,
            self.arrays.sizes,
            prepared.to_reduced,
            prepared.reduced,
            prepared.near,
            prepared.near_reduced,
            prepared.normalization,
            starts,
            self.best,
            _GOALS[self.goal],
            self.done,
            rms,
            largest,
            unsure,
        )
        basis, _ = ragged(counts)
        if unsure.any():
            again = np.unique(basis[unsure])
            _, trial, exact, exact_largest = try_arrays(
                self.arrays, owner[again], self._prepare(owner[again], bases[again])
            )
            places = np.flatnonzero(np.isin(basis, again))
            rms[places] = largest[places] = np.inf
            rms[places[trial]], largest[places[trial]] = exact, exact_largest
        found = np.flatnonzero(np.isfinite(rms))
        return owner[basis[found]], rms[found], largest[found]

    def _prepare(self, owner: Integers, bases: Floats) -> Bases:
        """Lay both crystals of each pair out on its bases."""
        counts = self.arrays.num_atoms[owner]
        basis, local = ragged(counts)
        cartesian = self.arrays.cartesian[self.arrays.atom_starts[owner][basis] + local]
        moving = lists_times(cartesian, counts, np.linalg.inv(bases))
        moving -= np.floor(moving)
        lengths, angles = parameters(bases)
        average = from_parameters(
            (lengths + self.lengths[owner]) / 2, (angles + self.angles[owner]) / 2
        )
        normalization = (counts / volumes(average)) ** (1 / 3)
        scale = 2 * self.tolerances.stol / normalization[:, None]
        reduced, mapping = lll_reduce(average)
        changed = (mapping != np.eye(3)).any(axis=(1, 2))
        to_reduced = mapping.copy()
        to_reduced[changed] = np.linalg.inv(mapping[changed])
        reduced_moving = lists_times(moving, counts, to_reduced) if changed.any() else moving
        return Bases(
            counts=counts,
            starts=np.cumsum(counts) - counts,
            moving=moving,
            reduced_moving=np.mod(reduced_moving, 1),
            normalization=normalization,
            reduced=reduced,
            to_reduced=to_reduced,
            near=inverse_heights(average) * scale,
            near_reduced=inverse_heights(reduced) * scale,
        )
