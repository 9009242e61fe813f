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

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from src.metrics.structure_matching.arrays import (
    Booleans,
    Floats,
    Integers,
    lists_times,
    ragged,
    rows_times,
    slices,
)
from src.metrics.structure_matching.lattices import (
    count_images,
    find_mappings,
    from_parameters,
    inverse_heights,
    lll_reduce,
    parameters,
    volumes,
)
from src.metrics.structure_matching.reduction import Cell

logger = logging.getLogger(__name__)

PERFECT = 1e-5
"""pymatgen looks no further than at a match as good as this."""

_FORBIDDEN = 1e20  # Å^2, pymatgen's distance of what may not be assigned
_TIE = 1e-8  # Å^2: distances as close as this may be one distance, rounded
_MAX_ENTRIES = 150_000  # of one array, so that it stays in the cache
_MAX_IMAGES = 500_000  # lattice points, for all pairs of a chunk
_MAX_PAIR_IMAGES = 200_000  # for one; more only where a cell is a hundred times as long as wide
_MAX_BRUTE = 4  # atoms of a kind whose permutations are all tried


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


class _Layout(NamedTuple):
    """Which atoms of a pair are of the same kind, where atoms of a kind follow one another.

    Attributes:
        num_atoms: Of each crystal.
        num_translations: Atoms of the first kind.
        rows, columns: Atom of the second crystal, and of the first, for each two of a kind.
        widths: Entries in `rows` of each atom.
        sizes: Atoms of each kind.
        atoms, entries: Where each kind begins among the atoms, and among `rows`.
    """

    num_atoms: int
    num_translations: int
    rows: Integers
    columns: Integers
    widths: Integers
    sizes: Integers
    atoms: Integers
    entries: Integers


@lru_cache(maxsize=4096)
def _layout(sizes: tuple[int, ...]) -> _Layout:
    counts = np.array(sizes)
    starts = np.cumsum(counts) - counts
    kinds = np.split(np.arange(counts.sum()), starts[1:])
    return _Layout(
        num_atoms=int(counts.sum()),
        num_translations=sizes[0],
        rows=np.concatenate([np.repeat(kind, len(kind)) for kind in kinds]),
        columns=np.concatenate([np.tile(kind, len(kind)) for kind in kinds]),
        widths=np.repeat(counts, counts),
        sizes=counts,
        atoms=starts,
        entries=np.cumsum(counts**2) - counts**2,
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two crystals of the same composition.

    Attributes:
        index: Its place among the pairs.
        first, second: The crystals.
        first_order, second_order: Atoms by kind, the kind of which there are fewest first.
        first_coords, second_coords: Their fractional coordinates in this order.
        layout: Of the sorted atoms.
    """

    index: int
    first: Cell
    second: Cell
    first_order: Integers
    first_coords: Floats
    second_order: Integers
    second_coords: Floats
    layout: _Layout


def _sort_atoms(index: int, first: Cell, second: Cell) -> _Pair | None:
    """The pair with its atoms sorted; None if compositions or sizes differ."""
    if first.composition != second.composition:
        return None
    # pymatgen translates by the kind that is rarest, and comes first in the second crystal
    ranking = second.ranking
    counts = second.composition[1]
    layout = _layout(tuple(counts[k] for k in ranking))
    return _Pair(
        index, first, second, *first.sorted_by(ranking), *second.sorted_by(ranking), layout
    )


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
    sorted_pairs = [_sort_atoms(i, first, second) for i, (first, second) in enumerate(pairs)]
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


class _Batch:
    """Pairs that are matched together, laid out as flat arrays."""

    def __init__(
        self,
        pairs: Sequence[_Pair],
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
        layouts = [pair.layout for pair in pairs]
        self.num_atoms = np.array([layout.num_atoms for layout in layouts])
        self.num_translations = np.array([layout.num_translations for layout in layouts])
        self.num_entries = np.array([len(layout.rows) for layout in layouts])
        self.num_kinds = np.array([len(layout.sizes) for layout in layouts])
        self.rows = np.concatenate([layout.rows for layout in layouts])
        self.columns = np.concatenate([layout.columns for layout in layouts])
        self.widths = np.concatenate([layout.widths for layout in layouts])
        self.sizes = np.concatenate([layout.sizes for layout in layouts])
        self.kind_atoms = np.concatenate([layout.atoms for layout in layouts])
        self.kind_entries = np.concatenate([layout.entries for layout in layouts])
        self.atom_starts = np.cumsum(self.num_atoms) - self.num_atoms
        self.entry_starts = np.cumsum(self.num_entries) - self.num_entries
        self.kind_starts = np.cumsum(self.num_kinds) - self.num_kinds
        owner = np.repeat(np.arange(len(pairs)), self.num_atoms)
        first = np.concatenate([pair.first_coords for pair in pairs])
        self.cartesian = rows_times(first, lattices[owner])
        self.target = np.concatenate([pair.second_coords for pair in pairs])

    def match(self, owner: Integers, bases: Floats, max_work: float) -> list[Outcome]:
        """The outcome of each pair, given the bases to try, (C,) and (C, 3, 3)."""
        effort = (self.num_translations * self.num_entries).astype(np.float64)
        work = np.bincount(owner, minlength=len(self.pairs)) * effort
        feasible = ~(work > max_work)
        owner, bases = owner[feasible[owner]], bases[feasible[owner]]
        rms, largest = np.full((2, len(self.pairs)), np.inf)
        for part in slices(effort[owner], _MAX_ENTRIES) if len(owner) else ():
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
            pair, _, rms, largest = self._try_arrays(owner, prepared)
            return pair, rms, largest
        counts = self.num_translations[owner]
        starts = np.cumsum(counts) - counts
        rms, largest = np.empty((2, counts.sum()))
        unsure = np.zeros(len(rms), dtype=bool)
        self.kernel(
            owner,
            prepared.starts,
            prepared.moving,
            prepared.reduced_moving,
            self.target,
            self.atom_starts,
            self.num_atoms,
            self.kind_starts,
            self.num_kinds,
            self.sizes,
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
            _, trial, exact, exact_largest = self._try_arrays(
                owner[again], self._prepare(owner[again], bases[again])
            )
            places = np.flatnonzero(np.isin(basis, again))
            rms[places] = largest[places] = np.inf
            rms[places[trial]], largest[places[trial]] = exact, exact_largest
        found = np.flatnonzero(np.isfinite(rms))
        return owner[basis[found]], rms[found], largest[found]

    def _prepare(self, owner: Integers, bases: Floats) -> _Bases:
        """Lay both crystals of each pair out on its bases."""
        counts = self.num_atoms[owner]
        basis, local = ragged(counts)
        cartesian = self.cartesian[self.atom_starts[owner][basis] + local]
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
        return _Bases(
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

    def _try_arrays(
        self, owner: Integers, bases: _Bases
    ) -> tuple[Integers, Integers, Floats, Floats]:
        """Try each translation with each basis, all of them at once.

        Returns:
            Of the trials in which each atom has a partner near by: the pair, the place among all
            trials, rms and maximum.
        """
        basis, local = ragged(self.num_translations[owner])
        parts = [
            self._try_part(owner, bases, np.arange(part.start, part.stop), basis[part], local[part])
            for part in slices(self.num_entries[owner[basis]], _MAX_ENTRIES)
        ]
        pair, trial, rms, largest = map(np.concatenate, zip(*parts, strict=True))
        return pair, trial, rms, largest

    def _try_part(
        self,
        owner: Integers,
        bases: _Bases,
        places: Integers,
        basis: Integers,
        translation: Integers,
    ) -> tuple[Integers, Integers, Floats, Floats]:
        """`_try_arrays` for some of the trials, given their places among all."""
        pair = owner[basis]
        starts = bases.starts
        shift = bases.moving[starts[basis] + translation] - self.target[self.atom_starts[pair]]
        trials = _Trials(self, pair, basis, starts[basis], self._moved(pair, shift))
        keep = np.flatnonzero(self._have_partners(trials, bases.moving, bases.near))
        if not len(keep):
            return keep, keep, np.zeros(0), np.zeros(0)
        pair, basis = pair[keep], basis[keep]
        if len(keep) < len(trials.pair):
            moved = self._moved(pair, shift[keep])
            trials = _Trials(self, pair, basis, starts[basis], moved)
        second = lists_times(trials.moved, trials.counts, bases.to_reduced[basis])
        vectors, possible = self._displacements(trials, bases, np.mod(second, 1))
        sums = np.add.reduceat(vectors, trials.starts, axis=0)
        vectors -= np.repeat(sums / trials.counts[:, None], trials.counts, axis=0)
        squares = (vectors**2).sum(axis=1)
        factor = bases.normalization[basis]
        rms = np.sqrt(np.add.reduceat(squares, trials.starts) / trials.counts) * factor
        largest = np.sqrt(np.maximum.reduceat(squares, trials.starts)) * factor
        return pair[possible], places[keep[possible]], rms[possible], largest[possible]

    def _moved(self, pair: Integers, shift: Floats) -> Floats:
        """Atoms of the second crystals after translations, (A, 3)."""
        trial, local = ragged(self.num_atoms[pair])
        return self.target[self.atom_starts[pair][trial] + local] + shift[trial]

    def _have_partners(self, trials: _Trials, moving: Floats, near: Floats) -> Booleans:
        """(K,) whether each atom of the second crystal has one of its kind near by in the first."""
        result = np.ones(len(trials.pair), dtype=bool)
        strict = np.flatnonzero(near.min(axis=1)[trials.basis] < 0.5)
        if not len(strict):
            return result
        trial, rows, columns, widths = trials.entries(strict)
        close = np.ones(len(trial), dtype=bool)
        for axis in range(3):
            difference = trials.moved[rows, axis]
            difference -= moving[columns, axis]
            difference -= np.round(difference)
            close &= np.abs(difference, out=difference) <= near[trials.basis[trial], axis]
        atoms = np.logical_or.reduceat(close, np.cumsum(widths) - widths)
        counts = trials.counts[strict]
        result[strict] = np.logical_and.reduceat(atoms, np.cumsum(counts) - counts)
        return result

    def _displacements(
        self, trials: _Trials, bases: _Bases, second: Floats
    ) -> tuple[Floats, Booleans]:
        """Vectors in Å from each atom of the second crystal to its partner in the first.

        Args:
            trials: To be considered.
            bases: All.
            second: (A, 3) atoms of the second crystal for each trial, fractions of the LLL-reduced
                average lattice from 0 to 1.

        Returns:
            (A, 3) and whether all atoms have a partner, (K,).
        """
        first, lattices, near = bases.reduced_moving, bases.reduced, bases.near_reduced
        _, rows, columns, _ = trials.entries(np.arange(len(trials.pair)))
        basis = trials.basis
        between = [first[columns, axis] - second[rows, axis] for axis in range(3)]
        counts = self.num_entries[trials.pair]
        squares, shortest = _squared_distances(between, lattices, basis, counts)
        if near.min() < 0.5:
            for axis in range(3):
                if near[:, axis].min() < 0.5:
                    difference = between[axis]
                    difference -= np.round(difference)
                    np.abs(difference, out=difference)
                    far = difference > np.repeat(near[basis, axis], counts)
                    squares[far] = _FORBIDDEN
        partners, cost, unsure = self._assign(trials, squares, counts)
        start = _cartesian(second, lattices[np.repeat(basis, trials.counts)])
        end = _cartesian(first, np.repeat(lattices, bases.counts, axis=0))
        for k in np.flatnonzero(unsure):
            pair = self.pairs[trials.pair[k]]
            n = pair.layout.num_atoms
            mine = slice(trials.starts[k], trials.starts[k] + n)
            other = slice(trials.basis_starts[k], trials.basis_starts[k] + n)
            partners[mine] = trials.basis_starts[k] + _assign_as_pymatgen(
                pair, first[other], second[mine], start[mine], end[other],
                lattices[basis[k]], near[basis[k]],
            )  # fmt: skip
        which = np.repeat(basis, trials.counts)
        cells = -np.round(first[partners] - second)
        straight = end[partners] - start
        vectors = straight + _cartesian(cells, lattices[which])
        sure = (vectors**2).sum(axis=1) < 0.2499 * shortest[which]
        if not sure.all():
            at = np.flatnonzero(~sure)
            vectors[at] = _shortest_images(straight[at], _images(lattices)[which[at]])
        return vectors, cost < _FORBIDDEN / 2

    def _assign(
        self, trials: _Trials, squares: Floats, counts: Integers
    ) -> tuple[Integers, Floats, Booleans]:
        """Partners for which the sum of squared distances is least.

        Args:
            trials: To be considered.
            squares: Å^2 of the entries of all trials.
            counts: (K,) entries of each trial.

        Returns:
            The partner of each atom (A,), the sum (K,), whether another choice may be as good (K,).
        """
        trial, local = ragged(self.num_kinds[trials.pair])
        kind = self.kind_starts[trials.pair][trial] + local
        sizes = self.sizes[kind]
        entry = (np.cumsum(counts) - counts)[trial] + self.kind_entries[kind]
        atom = trials.starts[trial] + self.kind_atoms[kind]
        base = trials.basis_starts[trial] + self.kind_atoms[kind]
        partners = np.empty(len(trials.moved), dtype=np.int64)
        cost = np.zeros(len(trial))
        open_ = np.zeros(len(trial), dtype=bool)
        for size in np.unique(sizes):
            at = np.flatnonzero(sizes == size)
            if size == 1:
                partners[atom[at]] = base[at]
                cost[at] = squares[entry[at]]
                continue
            matrix = squares[entry[at, None] + np.arange(size * size)].reshape(-1, size, size)
            columns, cost[at], open_[at] = _assign_kind(matrix)
            partners[atom[at, None] + np.arange(size)] = columns + base[at, None]
        total = np.bincount(trial, cost, len(trials.pair))
        unsure = np.bincount(trial, open_, len(trials.pair)) > 0
        return partners, total, unsure & (total < _FORBIDDEN / 2)


class _Bases(NamedTuple):
    """Pairs of crystals laid out on bases.

    Attributes:
        counts, starts: (C,) atoms of a crystal, and where they begin in `moving`.
        moving: Atoms of the first crystal for each basis, fractions of it.
        reduced_moving: The same as fractions of `reduced`, 0 to 1.
        normalization: (C,) inverse of the free length of an atom on the average lattice, 1/Å.
        reduced: (C, 3, 3) LLL-reduced averages of the bases and the second lattices, Å.
        to_reduced: (C, 3, 3) takes fractions of a basis to those of `reduced`.
        near, near_reduced: (C, 3) how far partners may be apart, in fractions of either.
    """

    counts: Integers
    starts: Integers
    moving: Floats
    reduced_moving: Floats
    normalization: Floats
    reduced: Floats
    to_reduced: Floats
    near: Floats
    near_reduced: Floats


class _Trials:
    """Trials of a batch: a basis and a translation each.

    Attributes:
        pair, basis: (K,) which pair, and which basis.
        moved: (A, 3) atoms of the second crystal after the translation, fractions of the basis.
        counts, starts: (K,) atoms of each trial, and where they begin in `moved`.
        basis_starts: (K,) where the atoms of the first crystal begin among those of all bases.
    """

    def __init__(
        self, batch: _Batch, pair: Integers, basis: Integers, starts: Integers, moved: Floats
    ) -> None:
        self.pair, self.basis, self.moved, self.basis_starts = pair, basis, moved, starts
        self.counts = batch.num_atoms[pair]
        self.starts = np.cumsum(self.counts) - self.counts
        self._batch = batch

    def entries(self, which: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """The pairs of atoms that may be partners, for some trials.

        Returns:
            Of each entry: its trial, its place in `moved`, and that among the atoms of all bases;
            and the number of entries of each atom in `moved`.
        """
        batch, pair = self._batch, self.pair[which]
        trial, local = ragged(batch.num_entries[pair])
        entry = batch.entry_starts[pair][trial] + local
        rows = self.starts[which][trial] + batch.rows[entry]
        columns = self.basis_starts[which][trial] + batch.columns[entry]
        atom, local = ragged(self.counts[which])
        widths = batch.widths[batch.atom_starts[pair][atom] + local]
        return which[trial], rows, columns, widths


_GOALS = {"rms": 0, "verdict": 1, "fit": 2}  # as the compiled loops know them
_CELLS = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))


def _cartesian(coords: Floats, lattices: Floats) -> Floats:
    """Fractions (M, 3) of lattices (M, 3, 3) in Å, summed in pymatgen's order."""
    result = coords[:, 0, None] * lattices[:, 0]
    result += coords[:, 1, None] * lattices[:, 1]
    result += coords[:, 2, None] * lattices[:, 2]
    return result


def _images(lattices: Floats) -> Floats:
    """The (27, 3) nearest lattice points of each lattice, in pymatgen's order."""
    cells = np.tile(_CELLS, (len(lattices), 1))
    return _cartesian(cells, np.repeat(lattices, 27, axis=0)).reshape(-1, 27, 3)


def _shortest_images(vectors: Floats, images: Floats) -> Floats:
    """The first shortest of the vectors (M, 3) plus one of their images (M, 27, 3)."""
    candidates = vectors[:, None] + images
    x, y, z = candidates[..., 0], candidates[..., 1], candidates[..., 2]
    best = np.argmin(x * x + y * y + z * z, axis=1)
    return candidates[np.arange(len(vectors)), best]


def _squared_distances(
    between: Sequence[Floats], lattices: Floats, basis: Integers, counts: Integers
) -> tuple[Floats, Floats]:
    """Squared lengths of the shortest of 27 images, and of the shortest lattice vectors.

    Args:
        between: Three arrays of the entries of all trials, fractions of the lattice.
        lattices: (C, 3, 3) Å.
        basis: (K,) the lattice of each trial.
        counts: (K,) entries of each trial.

    Returns:
        Of the entries, and (C,), in Å^2.
    """
    metric = np.matmul(lattices, lattices.transpose(0, 2, 1))
    g = {(i, j): np.repeat(metric[basis, i, j], counts) for i in range(3) for j in range(i, 3)}
    x, y, z = between
    u = g[0, 0] * x
    u += g[0, 1] * y
    u += g[0, 2] * z
    v = g[0, 1] * x
    v += g[1, 1] * y
    v += g[1, 2] * z
    w = g[0, 2] * x
    w += g[1, 2] * y
    w += g[2, 2] * z
    squares = x * u
    squares += y * v
    squares += z * w
    # |d + k|^2 = |d|^2 + 2 k.d + |k|^2, for k and -k at once
    gain = np.zeros_like(squares)
    shortest = np.full(len(lattices), np.inf)
    plane = {(1, 0): u, (0, 1): v, (1, 1): u + v, (1, -1): u - v}
    for cell in _CELLS[14:]:
        norm = np.matmul(np.matmul(metric, cell), cell)
        np.minimum(shortest, norm, out=shortest)
        i, j, k = cell
        if not i and not j:
            along = np.abs(w)
        elif not k:
            along = np.abs(plane[i, j])
        else:
            along = plane[i, j] + w if k > 0 else plane[i, j] - w
            np.abs(along, out=along)
        along *= -2
        along += np.repeat(norm[basis], counts)
        np.minimum(gain, along, out=gain)
    squares += gain
    return squares, shortest


_PERMUTATIONS = {
    size: np.array(list(itertools.permutations(range(size)))) for size in range(2, _MAX_BRUTE + 1)
}


def _assign_kind(matrix: Floats) -> tuple[Integers, Floats, Booleans]:
    """The choice of columns for which the sum is least.

    Args:
        matrix: (L, M, M).

    Returns:
        Columns (L, M), their sum (L,), and whether another choice may be as good (L,).
    """
    size = matrix.shape[1]
    if size <= _MAX_BRUTE:
        permutations = _PERMUTATIONS[size]
        sums = matrix[:, 0, permutations[:, 0]]
        for k in range(1, size):
            sums += matrix[:, k, permutations[:, k]]
        best = sums.argmin(axis=1)
        total = sums[np.arange(len(sums)), best]
        return permutations[best], total, (sums <= total[:, None] + _TIE).sum(axis=1) > 1
    columns = matrix.argmin(axis=2)
    lowest = matrix.min(axis=2)
    total = lowest.sum(axis=1)
    unsure = (matrix <= lowest[:, :, None] + _TIE).sum(axis=(1, 2)) > size
    # each atom's nearest is the best choice if no two atoms have the same
    taken = (np.sort(columns, axis=1) != np.arange(size)).any(axis=1)
    if taken.any():
        from scipy.optimize import linear_sum_assignment

        for i in np.flatnonzero(taken):
            row, columns[i] = linear_sum_assignment(matrix[i])
            total[i] = matrix[i, row, columns[i]].sum()
        # would two rows lose nothing by an exchange?
        chosen = np.take_along_axis(matrix[taken], columns[taken][:, None, :], axis=2)
        own = np.diagonal(chosen, axis1=1, axis2=2)
        loss = chosen + chosen.transpose(0, 2, 1) - own[:, :, None] - own[:, None, :]
        unsure[taken] = (loss < _TIE).sum(axis=(1, 2)) > size
    return columns, total, unsure


def _assign_as_pymatgen(
    pair: _Pair,
    first: Floats,
    second: Floats,
    start: Floats,
    end: Floats,
    lattice: Floats,
    near: Floats,
) -> Integers:
    """The choice among equally good partners that pymatgen's order of operations makes.

    Args:
        pair: Which has N atoms.
        first, second: (N, 3) fractions of the lattice, of one trial.
        start, end: The same of the second and first crystal in Å.
        lattice, near: As for `_Batch._displacements`, (3, 3) and (3,).

    Returns:
        Of each atom of the second crystal, its partner among those of the first, (N,).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = pair.layout.rows, pair.layout.columns
    straight = end[columns] - start[rows]
    candidates = straight[:, None] + _images(lattice[None])[0]
    x, y, z = candidates[..., 0], candidates[..., 1], candidates[..., 2]
    squares = (x * x + y * y + z * z).min(axis=1)
    between = first[columns] - second[rows]
    squares[(np.abs(between - np.round(between)) > near).any(axis=1)] = _FORBIDDEN
    matrix = np.full((len(first), len(first)), _FORBIDDEN)
    matrix[pair.second_order[rows], pair.first_order[columns]] = squares
    _, found = linear_sum_assignment(matrix)
    place = np.argsort(pair.first_order)
    return place[found[pair.second_order]]
