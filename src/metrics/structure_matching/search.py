"""The search for the best match of two reduced crystals, for many pairs at once.

It follows pymatgen's `StructureMatcher` from `_preprocess` on: crystals are scaled to one volume;
each basis of the first lattice that resembles the second is tried, with each translation that puts
an atom of the rarest kind on the first such atom of the other crystal; atoms are assigned on the
average of both lattices, so that the sum of squared distances is least; and what is left after the
mean displacement is taken away counts.

B pairs, C bases, K trials (a basis and a translation), N atoms of a crystal, E pairs of atoms of
the same kind. Pairs whose kinds have the same numbers of atoms share arrays.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from src.metrics.structure_matching.arrays import Booleans, Floats, Integers, dot
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

PERFECT = 1e-5
"""pymatgen looks no further than at a match as good as this."""

_FORBIDDEN = 1e20  # Å^2, pymatgen's distance of what may not be assigned
_TIE = 1e-8  # Å^2: distances as close as this may be one distance, rounded
_MAX_ELEMENTS = 400_000  # of one array, so that it stays in the cache
_MAX_IMAGES = 2_000_000  # lattice points, for all pairs of a chunk
_MAX_BRUTE = 4  # atoms of a kind whose permutations are all tried


@dataclass(frozen=True, slots=True)
class Tolerances:
    """See `MatcherSettings`."""

    stol: float
    ltol: float
    angle_tol: float


class Outcome(NamedTuple):
    """What became of a pair.

    Attributes:
        rms: The smallest root-mean-square displacement over (V/N)^(1/3), None unless below `stol`.
        maximum: The smallest maximum displacement in the same unit, None unless below `stol`.
        work: Trials times pairs of atoms of the same kind; what the time for a pair is made of.
        complete: False if the work was over the limit and the search was not done.
    """

    rms: float | None
    maximum: float | None
    work: float = 0.0
    complete: bool = True


UNMATCHED = Outcome(None, None)


class _Blocks:
    """Which pairs of atoms are of the same kind, where atoms of a kind follow one another.

    Attributes:
        sizes: Atoms of each kind.
        rows, columns: (E,) atoms of the second and of the first crystal.
        starts: (N,) where the pairs of each atom of the second crystal begin.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.num_atoms = sum(sizes)
        rows, columns, width, offset = [], [], [], 0
        for size in sizes:
            atoms = np.arange(offset, offset + size)
            rows.append(np.repeat(atoms, size))
            columns.append(np.tile(atoms, size))
            width += [size] * size
            offset += size
        self.rows, self.columns = np.concatenate(rows), np.concatenate(columns)
        self.starts = np.cumsum(width) - width
        self.num_entries = len(self.rows)


class _Pair(NamedTuple):
    """A pair of crystals with the same composition.

    Attributes:
        index: Its place among the pairs.
        first, second: The crystals.
        first_order, second_order: Atoms by kind, the kind of which there are fewest first.
    """

    index: int
    first: Cell
    second: Cell
    first_order: Integers
    second_order: Integers


def search(
    pairs: Sequence[tuple[Cell, Cell]], tolerances: Tolerances, max_work: float = np.inf
) -> list[Outcome]:
    """Match reduced crystals.

    Args:
        pairs: Cells that `niggli_cells` or `primitive_cell` gave.
        tolerances: As `StructureMatcher` takes them.
        max_work: See `Outcome.work`; what exceeds it is left unmatched, and says so.
    """
    outcomes: list[Outcome] = [UNMATCHED] * len(pairs)
    groups: dict[tuple[int, ...], list[_Pair]] = defaultdict(list)
    for index, (first, second) in enumerate(pairs):
        sorted_pair = _sort_atoms(index, first, second)
        if sorted_pair is not None:
            groups[sorted_pair[0]].append(sorted_pair[1])
    ordered = [(sizes, pair) for sizes, members in groups.items() for pair in members]
    if not ordered:
        return outcomes
    lattices = np.stack([(pair.first.lattice, pair.second.lattice) for _, pair in ordered])
    first, second = lattices[:, 0], lattices[:, 1]
    ratio = ((volumes(second) / volumes(first)) ** (1 / 6))[:, None, None]
    first, second = first * ratio, second / ratio
    lengths, angles = parameters(second)
    images = count_images(first, lengths.max(axis=1) * (1 + tolerances.ltol))
    for chunk in _slices(images, _MAX_IMAGES):
        if not images[chunk.start] <= max(_MAX_IMAGES, 1):
            outcomes[ordered[chunk.start][1].index] = Outcome(
                None, None, float(images[chunk.start]), complete=False
            )
            continue
        owner, bases, determinants = find_mappings(
            first[chunk],
            lengths[chunk],
            angles[chunk],
            np.full(chunk.stop - chunk.start, tolerances.ltol),
            tolerances.angle_tol,
        )
        same_volume = np.abs(np.abs(determinants) - 1) <= 0.5
        owner, bases = owner[same_volume] + chunk.start, bases[same_volume]
        cuts = np.searchsorted(owner, np.arange(chunk.start, chunk.stop + 1)) if len(owner) else []
        if not len(owner):
            continue
        at = chunk.start
        for sizes, members in itertools.groupby(ordered[chunk], key=lambda item: item[0]):
            count = len(list(members))
            span = slice(at, at + count)
            part = slice(cuts[at - chunk.start], cuts[at - chunk.start + count])
            at += count
            _match_group(
                _Blocks(sizes),
                [pair for _, pair in ordered[span]],
                first[span],
                lengths[span],
                angles[span],
                second[span],
                owner[part] - span.start,
                bases[part],
                tolerances,
                max_work,
                outcomes,
            )
    return outcomes


def _sort_atoms(index: int, first: Cell, second: Cell) -> tuple[tuple[int, ...], _Pair] | None:
    """The numbers of atoms of each kind and the pair; None if compositions or sizes differ."""
    if len(first.kinds) != len(second.kinds):
        return None
    kinds, start, inverse, counts = np.unique(
        second.kinds, return_index=True, return_inverse=True, return_counts=True
    )
    first_order = np.argsort(first.kinds, kind="stable")
    second_order = np.argsort(second.kinds, kind="stable")
    if not np.array_equal(first.kinds[first_order], second.kinds[second_order]):
        return None
    if len(kinds) > 1:
        # pymatgen translates by the rarest kind; of several, by that of the first atom
        rank = np.empty(len(kinds), dtype=np.int64)
        order = np.lexsort((start, counts))
        rank[order] = np.arange(len(kinds))
        second_order = np.argsort(rank[inverse], kind="stable")
        first_order = np.argsort(rank[np.searchsorted(kinds, first.kinds)], kind="stable")
        counts = counts[order]
    return tuple(counts.tolist()), _Pair(index, first, second, first_order, second_order)


def _slices(work: Floats, limit: float) -> Iterator[slice]:
    start, total = 0, 0.0
    for i, amount in enumerate(work.tolist()):
        if i > start and not total + amount <= limit:
            yield slice(start, i)
            start, total = i, 0.0
        total += amount
    yield slice(start, len(work))


def _match_group(
    blocks: _Blocks,
    pairs: Sequence[_Pair],
    first: Floats,
    lengths: Floats,
    angles: Floats,
    second: Floats,
    owner: Integers,
    bases: Floats,
    tolerances: Tolerances,
    max_work: float,
    outcomes: list[Outcome],
) -> None:
    """Match pairs of one kind of composition, given the bases to try for each; fill `outcomes`."""
    cartesian = np.stack(
        [
            # row by row, as pymatgen's sites do it
            np.matmul(pair.first.frac_coords[:, None, :], lattice)[:, 0]
            for pair, lattice in zip(pairs, first, strict=True)
        ]
    )
    coords = np.stack([pair.second.frac_coords[pair.second_order] for pair in pairs])
    first_orders = np.stack([pair.first_order for pair in pairs])
    translations = blocks.sizes[0]
    work_of_basis = translations * blocks.num_entries
    work = np.bincount(owner, minlength=len(pairs)) * float(work_of_basis)
    for i in np.flatnonzero(work > max_work):
        outcomes[pairs[i].index] = Outcome(None, None, float(work[i]), complete=False)
    allowed = ~(work > max_work)[owner]
    owner, bases = owner[allowed], bases[allowed]

    rms = np.full(len(pairs), np.inf)
    maxima = np.full(len(pairs), np.inf)
    perfect = np.zeros(len(pairs), dtype=bool)
    step = max(1, _MAX_ELEMENTS // work_of_basis)
    for start in range(0, len(owner), step):
        part = slice(start, start + step)
        now = ~perfect[owner[part]]
        if not now.any():
            continue
        trial_owner, values, largest = _try_bases(
            blocks,
            owner[part][now],
            bases[part][now],
            cartesian,
            coords,
            first_orders,
            [pair.second_order for pair in pairs],
            lengths,
            angles,
            tolerances,
        )
        if not len(values):
            continue
        np.minimum.at(maxima, trial_owner, largest)
        done = np.flatnonzero(values < PERFECT)
        best = np.full(len(pairs), np.inf)
        np.minimum.at(best, trial_owner, values)
        for k in done[::-1]:
            best[trial_owner[k]] = values[k]  # in the end the first of them
        rms = np.where(perfect, rms, np.minimum(rms, best))
        perfect[trial_owner[done]] = True
    for i, pair in enumerate(pairs):
        if outcomes[pair.index].complete:
            outcomes[pair.index] = Outcome(
                float(rms[i]) if rms[i] < tolerances.stol else None,
                float(maxima[i]) if maxima[i] < tolerances.stol else None,
                float(work[i]),
            )


def _try_bases(
    blocks: _Blocks,
    owner: Integers,
    bases: Floats,
    cartesian: Floats,
    coords: Floats,
    first_orders: Integers,
    second_orders: Sequence[Integers],
    lengths: Floats,
    angles: Floats,
    tolerances: Tolerances,
) -> tuple[Integers, Floats, Floats]:
    """Try each translation with each basis.

    Returns:
        Of the trials in which each atom has a partner near by: the pair, the rms and the maximum.
    """
    num_atoms = blocks.num_atoms
    translations = blocks.sizes[0]
    inverses = np.linalg.inv(bases)
    fractional = np.matmul(cartesian[owner], inverses)
    fractional -= np.floor(fractional)
    fractional = np.take_along_axis(fractional, first_orders[owner][:, :, None], axis=1)
    basis_lengths, basis_angles = parameters(bases)
    average = from_parameters(
        (basis_lengths + lengths[owner]) / 2, (basis_angles + angles[owner]) / 2
    )
    normalization = (num_atoms / volumes(average)) ** (1 / 3)
    scale = 2 * tolerances.stol / normalization[:, None]
    near = inverse_heights(average) * scale

    target = coords[owner]
    shift = fractional[:, :translations] - target[:, :1]  # (C, T, 3)
    moved = target[:, None] + shift[:, :, None]  # (C, T, N, 3)
    moved = moved.reshape(-1, num_atoms, 3)
    basis = np.repeat(np.arange(len(owner)), translations)
    first = np.ascontiguousarray(fractional.transpose(2, 0, 1))  # (3, C, N)
    second = np.ascontiguousarray(moved.transpose(2, 0, 1))  # (3, K, N)
    trials = np.flatnonzero(_have_partners(blocks, first, second, basis, near))
    if not len(trials):
        return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    basis = basis[trials]
    used, basis = np.unique(basis, return_inverse=True)
    reduced, mapping = lll_reduce(average[used])
    to_reduced = np.linalg.inv(mapping)
    near = inverse_heights(reduced) * scale[used]
    first = np.matmul(fractional[used], to_reduced)[basis].transpose(2, 0, 1)
    second = np.matmul(moved[trials], to_reduced[basis]).transpose(2, 0, 1)
    vectors, feasible = _displacements(
        blocks,
        np.mod(first, 1),
        np.mod(second, 1),
        reduced[basis],
        near[basis],
        lambda k: (first_orders[owner[used[basis[k]]]], second_orders[owner[used[basis[k]]]]),
    )
    vectors -= vectors.mean(axis=2, keepdims=True)
    squares = (vectors**2).sum(axis=0)
    factor = normalization[used][basis]
    rms = np.sqrt(squares.mean(axis=1)) * factor
    largest = np.sqrt(squares.max(axis=1)) * factor
    rms[~feasible] = largest[~feasible] = np.inf
    return owner[used[basis]], rms, largest


def _have_partners(
    blocks: _Blocks, first: Floats, second: Floats, basis: Integers, near: Floats
) -> Booleans:
    """(K,) whether each atom of the second crystal has one of its kind near by in the first."""
    if near.min() >= 0.5:
        return np.ones(second.shape[1], dtype=bool)
    close = None
    for axis in range(3):
        difference = second[axis][:, blocks.rows]
        difference -= first[axis][:, blocks.columns][basis]
        difference -= np.round(difference)
        good = np.abs(difference, out=difference) <= near[basis, axis, None]
        close = good if close is None else np.logical_and(close, good, out=close)
    return np.logical_or.reduceat(close, blocks.starts, axis=1).all(axis=1)


def _displacements(
    blocks: _Blocks, first: Floats, second: Floats, lattices: Floats, near: Floats, orders
) -> tuple[Floats, Booleans]:
    """Vectors in Å from each atom of the second crystal to its partner in the first.

    Args:
        blocks: Which atoms may be partners.
        first, second: (3, K, N) fractions of the LLL-reduced average lattices, 0 to 1.
        lattices: (K, 3, 3) these.
        near: (K, 3) how far partners may be apart, in fractions.
        orders: Of a trial, the places of the sorted atoms in both crystals.

    Returns:
        (3, K, N) and whether all atoms have a partner, (K,).
    """
    between = first[:, :, blocks.columns] - second[:, :, blocks.rows]  # (3, K, E)
    squares, shortest = _squared_distances(between, lattices)
    if near.min() < 0.5:
        far = None
        for axis in range(3):
            difference = between[axis] - np.round(between[axis])
            now = np.abs(difference, out=difference) > near[:, axis, None]
            far = now if far is None else np.logical_or(far, now, out=far)
        squares[far] = _FORBIDDEN
    partners, cost, unsure = _assign(blocks, squares)
    start, end = (
        sum(part[axis][:, :, None] * lattices[:, None, axis, :] for axis in range(3))
        for part in (second, first)
    )  # (K, N, 3)
    for k in np.flatnonzero(unsure):
        partners[k] = _assign_as_pymatgen(
            blocks, first[:, k], second[:, k], start[k], end[k], lattices[k], near[k], *orders(k)
        )
    rows = np.arange(len(partners))[:, None]
    chosen = np.take_along_axis(first, partners[None], axis=2) - second
    cells = -np.round(chosen)
    image = sum(cells[axis][:, :, None] * lattices[:, None, axis, :] for axis in range(3))
    straight = end[rows, partners] - start
    vectors = straight + image
    sure = (vectors**2).sum(axis=2) < 0.2499 * shortest[:, None]
    if not sure.all():
        at = np.nonzero(~sure)
        vectors[at] = _shortest_images(straight[at], _images(lattices)[at[0]])
    return vectors.transpose(2, 0, 1), cost < _FORBIDDEN / 2


_CELLS = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))


def _images(lattices: Floats) -> Floats:
    """The (27, 3) nearest lattice points of each lattice, as pymatgen sums them."""
    return (
        _CELLS[:, 0, None] * lattices[:, None, 0]
        + _CELLS[:, 1, None] * lattices[:, None, 1]
        + _CELLS[:, 2, None] * lattices[:, None, 2]
    )


def _shortest_images(vectors: Floats, images: Floats) -> Floats:
    """The first shortest of the vectors (M, 3) plus one of their images (M, 27, 3)."""
    candidates = vectors[:, None] + images
    x, y, z = candidates[..., 0], candidates[..., 1], candidates[..., 2]
    best = np.argmin(x * x + y * y + z * z, axis=1)
    return candidates[np.arange(len(vectors)), best]


def _squared_distances(between: Floats, lattices: Floats) -> tuple[Floats, Floats]:
    """Squared lengths of the shortest of 27 images, and of the shortest lattice vector.

    Args:
        between: (3, K, E) fractions.
        lattices: (K, 3, 3) Å.

    Returns:
        (K, E) and (K,) in Å^2.
    """
    metric = np.matmul(lattices, lattices.transpose(0, 2, 1))
    g = metric[:, :, :, None]
    x, y, z = between
    u = g[:, 0, 0] * x + g[:, 0, 1] * y + g[:, 0, 2] * z
    v = g[:, 0, 1] * x + g[:, 1, 1] * y + g[:, 1, 2] * z
    w = g[:, 0, 2] * x + g[:, 1, 2] * y + g[:, 2, 2] * z
    squares = x * u + y * v + z * w
    # |d + k|^2 = |d|^2 + 2 k.d + |k|^2, for k and -k at once
    gain = np.zeros_like(squares)
    shortest = np.full(len(lattices), np.inf)
    halves = [cell for cell in _CELLS[14:].astype(int).tolist()]
    parts = {(0, 0): None}
    for i, j in ((1, 0), (0, 1), (1, 1), (1, -1)):
        parts[i, j] = u * i + v * j if i and j else (u if i else v)
    for i, j, k in halves:
        vector = np.array([i, j, k], dtype=np.float64)
        norm = np.einsum("i,lij,j->l", vector, metric, vector)
        np.minimum(shortest, norm, out=shortest)
        part = parts[i, j]
        if part is None:
            along = np.abs(w)
        elif k == 0:
            along = np.abs(part)
        else:
            along = part + w if k > 0 else part - w
            np.abs(along, out=along)
        along *= -2
        along += norm[:, None]
        np.minimum(gain, along, out=gain)
    squares += gain
    return squares, shortest


def _assign(blocks: _Blocks, squares: Floats) -> tuple[Integers, Floats, Booleans]:
    """Partners for which the sum of squared distances is least.

    Args:
        blocks: Which entries belong to which pairs of atoms.
        squares: (K, E) Å^2.

    Returns:
        The partner of each atom (K, N), the sum (K,), and whether another choice may be as good.
    """
    num_trials = len(squares)
    partners = np.empty((num_trials, blocks.num_atoms), dtype=np.int64)
    cost = np.zeros(num_trials)
    unsure = np.zeros(num_trials, dtype=bool)
    entry = atom = 0
    for size in blocks.sizes:
        matrix = squares[:, entry : entry + size * size].reshape(num_trials, size, size)
        entry += size * size
        here = partners[:, atom : atom + size]
        if size == 1:
            here[:] = atom
            cost += matrix[:, 0, 0]
        else:
            columns, total, open_ = _assign_block(matrix)
            here[:] = columns + atom
            cost += total
            unsure |= open_ & (total < _FORBIDDEN / 2)
        atom += size
    return partners, cost, unsure & (cost < _FORBIDDEN / 2)


_PERMUTATIONS = {
    size: np.array(list(itertools.permutations(range(size)))) for size in range(2, _MAX_BRUTE + 1)
}


def _assign_block(matrix: Floats) -> tuple[Integers, Floats, Booleans]:
    """`_assign` for atoms of one kind: (K, M, M) to (K, M), (K,) and (K,)."""
    num_trials, size, _ = matrix.shape
    columns = matrix.argmin(axis=2)
    lowest = matrix.min(axis=2)
    total = lowest.sum(axis=1)
    unsure = (matrix <= lowest[:, :, None] + _TIE).sum(axis=(1, 2)) > size
    # each atom's nearest is the best choice if no two atoms have the same
    ordered = np.sort(columns, axis=1)
    for k in [np.flatnonzero((ordered != np.arange(size)).any(axis=1) | unsure)]:
        if not len(k):
            break
        if size <= _MAX_BRUTE:
            permutations = _PERMUTATIONS[size]
            sums = matrix[k][:, np.arange(size), permutations].sum(axis=2)
            columns[k] = permutations[sums.argmin(axis=1)]
            total[k] = sums.min(axis=1)
            unsure[k] = (sums <= total[k, None] + _TIE).sum(axis=1) > 1
        else:
            from scipy.optimize import linear_sum_assignment

            for i in k:
                row, columns[i] = linear_sum_assignment(matrix[i])
                total[i] = matrix[i, row, columns[i]].sum()
    return columns, total, unsure


def _assign_as_pymatgen(
    blocks: _Blocks,
    first: Floats,
    second: Floats,
    start: Floats,
    end: Floats,
    lattice: Floats,
    near: Floats,
    first_order: Integers,
    second_order: Integers,
) -> Integers:
    """The choice among equally good partners that pymatgen's order of operations makes."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = blocks.rows, blocks.columns
    straight = end[columns] - start[rows]
    candidates = straight[:, None] + _images(lattice[None])[0]
    x, y, z = candidates[..., 0], candidates[..., 1], candidates[..., 2]
    squares = (x * x + y * y + z * z).min(axis=1)
    between = (first[:, columns] - second[:, rows]).T
    squares[(np.abs(between - np.round(between)) > near).any(axis=1)] = _FORBIDDEN
    matrix = np.full((blocks.num_atoms, blocks.num_atoms), _FORBIDDEN)
    matrix[second_order[rows], first_order[columns]] = squares
    _, found = linear_sum_assignment(matrix)
    place = np.argsort(first_order)
    return place[found[second_order]]
