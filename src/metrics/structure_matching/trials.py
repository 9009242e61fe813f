"""Trials, a basis and a translation each, evaluated all at once by NumPy.

It is what there is without Numba, and what decides where the compiled loops of `kernel` are not
sure, because it follows pymatgen's order of operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from src.metrics.structure_matching.arrays import (
    Booleans,
    Floats,
    Integers,
    lists_times,
    ragged,
    slices,
)
from src.metrics.structure_matching.assignment import FORBIDDEN, assign_as_pymatgen, assign_kind
from src.metrics.structure_matching.distances import (
    cartesian,
    images_of,
    shortest_images,
    squared_distances,
)
from src.metrics.structure_matching.pairs import PairArrays

MAX_ENTRIES = 150_000
"""Of one array, so that it stays in the cache."""


class Bases(NamedTuple):
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


class Trials:
    """Trials of some pairs: a basis and a translation each.

    Attributes:
        pair, basis: (K,) which pair, and which basis.
        moved: (A, 3) atoms of the second crystal after the translation, fractions of the basis.
        counts, starts: (K,) atoms of each trial, and where they begin in `moved`.
        basis_starts: (K,) where the atoms of the first crystal begin among those of all bases.
    """

    def __init__(
        self, arrays: PairArrays, pair: Integers, basis: Integers, starts: Integers, moved: Floats
    ) -> None:
        self.pair, self.basis, self.moved, self.basis_starts = pair, basis, moved, starts
        self.counts = arrays.num_atoms[pair]
        self.starts = np.cumsum(self.counts) - self.counts
        self._arrays = arrays

    def entries(self, which: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """The pairs of atoms that may be partners, for some trials.

        Returns:
            Of each entry: its trial, its place in `moved`, and that among the atoms of all bases;
            and the number of entries of each atom in `moved`.
        """
        arrays, pair = self._arrays, self.pair[which]
        trial, local = ragged(arrays.num_entries[pair])
        entry = arrays.entry_starts[pair][trial] + local
        rows = self.starts[which][trial] + arrays.rows[entry]
        columns = self.basis_starts[which][trial] + arrays.columns[entry]
        atom, local = ragged(self.counts[which])
        widths = arrays.widths[arrays.atom_starts[pair][atom] + local]
        return which[trial], rows, columns, widths


def try_arrays(
    arrays: PairArrays, owner: Integers, bases: Bases
) -> tuple[Integers, Integers, Floats, Floats]:
    """Try each translation with each basis, all of them at once.

    Returns:
        Of the trials in which each atom has a partner near by: the pair, the place among all
        trials, rms and maximum.
    """
    basis, local = ragged(arrays.num_translations[owner])
    parts = [
        _try_part(arrays, owner, bases, np.arange(part.start, part.stop), basis[part], local[part])
        for part in slices(arrays.num_entries[owner[basis]], MAX_ENTRIES)
    ]
    pair, trial, rms, largest = map(np.concatenate, zip(*parts, strict=True))
    return pair, trial, rms, largest


def _try_part(
    arrays: PairArrays,
    owner: Integers,
    bases: Bases,
    places: Integers,
    basis: Integers,
    translation: Integers,
) -> tuple[Integers, Integers, Floats, Floats]:
    """`try_arrays` for some of the trials, given their places among all."""
    pair = owner[basis]
    starts = bases.starts
    shift = bases.moving[starts[basis] + translation] - arrays.target[arrays.atom_starts[pair]]
    trials = Trials(arrays, pair, basis, starts[basis], _moved(arrays, pair, shift))
    keep = np.flatnonzero(_have_partners(trials, bases.moving, bases.near))
    if not len(keep):
        return keep, keep, np.zeros(0), np.zeros(0)
    pair, basis = pair[keep], basis[keep]
    if len(keep) < len(trials.pair):
        moved = _moved(arrays, pair, shift[keep])
        trials = Trials(arrays, pair, basis, starts[basis], moved)
    second = lists_times(trials.moved, trials.counts, bases.to_reduced[basis])
    vectors, possible = _displacements(arrays, trials, bases, np.mod(second, 1))
    sums = np.add.reduceat(vectors, trials.starts, axis=0)
    vectors -= np.repeat(sums / trials.counts[:, None], trials.counts, axis=0)
    squares = (vectors**2).sum(axis=1)
    factor = bases.normalization[basis]
    rms = np.sqrt(np.add.reduceat(squares, trials.starts) / trials.counts) * factor
    largest = np.sqrt(np.maximum.reduceat(squares, trials.starts)) * factor
    return pair[possible], places[keep[possible]], rms[possible], largest[possible]


def _moved(arrays: PairArrays, pair: Integers, shift: Floats) -> Floats:
    """Atoms of the second crystals after translations, (A, 3)."""
    trial, local = ragged(arrays.num_atoms[pair])
    return arrays.target[arrays.atom_starts[pair][trial] + local] + shift[trial]


def _have_partners(trials: Trials, moving: Floats, near: Floats) -> Booleans:
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
    arrays: PairArrays, trials: Trials, bases: Bases, second: Floats
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
    counts = arrays.num_entries[trials.pair]
    squares, shortest = squared_distances(between, lattices, basis, counts)
    if near.min() < 0.5:
        for axis in range(3):
            if near[:, axis].min() < 0.5:
                difference = between[axis]
                difference -= np.round(difference)
                np.abs(difference, out=difference)
                far = difference > np.repeat(near[basis, axis], counts)
                squares[far] = FORBIDDEN
    partners, cost, unsure = _assign(arrays, trials, squares, counts)
    start = cartesian(second, lattices[np.repeat(basis, trials.counts)])
    end = cartesian(first, np.repeat(lattices, bases.counts, axis=0))
    for k in np.flatnonzero(unsure):
        pair = arrays.pairs[trials.pair[k]]
        n = pair.layout.num_atoms
        mine = slice(trials.starts[k], trials.starts[k] + n)
        other = slice(trials.basis_starts[k], trials.basis_starts[k] + n)
        partners[mine] = trials.basis_starts[k] + assign_as_pymatgen(
            pair, first[other], second[mine], start[mine], end[other],
            lattices[basis[k]], near[basis[k]],
        )  # fmt: skip
    which = np.repeat(basis, trials.counts)
    cells = -np.round(first[partners] - second)
    straight = end[partners] - start
    vectors = straight + cartesian(cells, lattices[which])
    sure = (vectors**2).sum(axis=1) < 0.2499 * shortest[which]
    if not sure.all():
        at = np.flatnonzero(~sure)
        vectors[at] = shortest_images(straight[at], images_of(lattices)[which[at]])
    return vectors, cost < FORBIDDEN / 2


def _assign(
    arrays: PairArrays, trials: Trials, squares: Floats, counts: Integers
) -> tuple[Integers, Floats, Booleans]:
    """Partners for which the sum of squared distances is least.

    Args:
        trials: To be considered.
        squares: Å^2 of the entries of all trials.
        counts: (K,) entries of each trial.

    Returns:
        The partner of each atom (A,), the sum (K,), whether another choice may be as good (K,).
    """
    trial, local = ragged(arrays.num_kinds[trials.pair])
    kind = arrays.kind_starts[trials.pair][trial] + local
    sizes = arrays.sizes[kind]
    entry = (np.cumsum(counts) - counts)[trial] + arrays.kind_entries[kind]
    atom = trials.starts[trial] + arrays.kind_atoms[kind]
    base = trials.basis_starts[trial] + arrays.kind_atoms[kind]
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
        columns, cost[at], open_[at] = assign_kind(matrix)
        partners[atom[at, None] + np.arange(size)] = columns + base[at, None]
    total = np.bincount(trial, cost, len(trials.pair))
    unsure = np.bincount(trial, open_, len(trials.pair)) > 0
    return partners, total, unsure & (total < FORBIDDEN / 2)
