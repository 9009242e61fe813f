"""Niggli cells and primitive cells of crystals, as `StructureMatcher` has them.

They are those of pymatgen's `Structure.get_reduced_structure` and `get_primitive_structure`, whose
tolerance of 0.25 Å finds the periods of a crystal that is only nearly periodic, and averages the
sites that coincide.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from src.metrics.structure_matching.arrays import Booleans, Floats, Integers, rows_times, slices
from src.metrics.structure_matching.lattices import count_images, lll_reduce, niggli_reduce
from src.utils.errors import UserError

TOLERANCE = 0.25  # Å, pymatgen's default
MAX_IMAGES = 500_000
"""Lattice points that a reduction may look at; only a needle or a sheet needs more."""

MAX_SUPERCELL_WORK = 5e7
"""Smaller cells to try, times vectors that may be periods; about half a minute."""

_MAX_ELEMENTS = 100_000  # of one array, times nine


@dataclass(frozen=True, eq=False)
class Cell:
    """An ordered crystal.

    Attributes:
        lattice: (3, 3) Å, rows a, b, c.
        kinds: (N,) integers, the same for atoms of the same kind.
        frac_coords: (N, 3) fractions of the cell.
    """

    lattice: Floats
    kinds: Integers
    frac_coords: Floats

    def __reduce__(self) -> tuple[type["Cell"], tuple[Floats, Integers, Floats]]:
        return Cell, (self.lattice, self.kinds, self.frac_coords)  # what is cached stays here

    @cached_property
    def composition(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The kinds in ascending order, and the number of atoms of each."""
        counts = Counter(self.kinds.tolist())
        kinds = tuple(sorted(counts))
        return kinds, tuple(counts[kind] for kind in kinds)

    @cached_property
    def ranking(self) -> tuple[int, ...]:
        """Places of the kinds in `composition`, the rarest kind first; of several, that of the
        first atom."""
        kinds, counts = self.composition
        first = self.kinds.tolist().index
        return tuple(sorted(range(len(kinds)), key=lambda k: (counts[k], first(kinds[k]))))

    def sorted_by(self, ranking: tuple[int, ...]) -> tuple[Integers, Floats]:
        """The order that puts the atoms kind by kind, and their coordinates in that order."""
        if ranking not in self._orders:
            order = np.argsort(np.argsort(ranking)[self._places], kind="stable")
            self._orders[ranking] = order, self.frac_coords[order]
        return self._orders[ranking]

    @cached_property
    def _orders(self) -> dict[tuple[int, ...], tuple[Integers, Floats]]:
        return {}

    @cached_property
    def _places(self) -> Integers:
        return np.searchsorted(np.array(self.composition[0]), self.kinds)


class ReductionError(UserError):
    """A cell that cannot be reduced; the message says why."""


def niggli_cells(cells: Sequence[Cell]) -> list[Cell | ReductionError]:
    """The crystals in their Niggli cells, atoms in the same order."""
    if not cells:
        return []
    lattices = np.stack([cell.lattice for cell in cells])
    with np.errstate(all="ignore"):
        finite = np.isfinite(lattices).all(axis=(1, 2))
        volume = np.where(finite, np.abs(np.linalg.det(lattices)), np.nan)
    valid = np.flatnonzero((volume > 0) & (volume < np.inf))
    reduced, mapping = np.zeros((2, *lattices.shape))
    work = np.zeros(len(cells))
    with np.errstate(all="ignore"):
        reduced[valid], mapping[valid] = lll_reduce(lattices[valid])
        lengths = np.sqrt(np.sum(reduced[valid] ** 2, axis=2))
        work[valid] = count_images(reduced[valid], 1.01 * lengths.max(axis=1))
    results: list[Cell | ReductionError] = list(cells)
    for i, cell in enumerate(cells):
        if not math.isfinite(cell.frac_coords.sum()):
            results[i] = ReductionError("has coordinates that are not finite")
    for i in np.flatnonzero(~((volume > 0) & (volume < np.inf))).tolist():
        results[i] = ReductionError(f"has a cell of volume {volume[i]} Å^3")
    for i in np.flatnonzero((volume > 0) & ~(work <= MAX_IMAGES)).tolist():
        results[i] = ReductionError(
            f"has a cell so flat that its reduction would look at {work[i]:.3g} lattice points, "
            f"over the limit of {MAX_IMAGES:,}"
        )
    sane = [i for i, result in enumerate(results) if isinstance(result, Cell)]
    for part in slices(work[sane], MAX_IMAGES) if sane else ():
        these = sane[part]
        niggli = _niggli([cells[i] for i in these], reduced[these], mapping[these])
        for i, result in zip(these, niggli, strict=True):
            results[i] = result
    return results


def primitive_cells(cells: Sequence[Cell | ReductionError]) -> list[Cell | ReductionError]:
    """The smallest cells that describe the crystals within 0.25 Å, Niggli-reduced.

    A cell that is no multiple of a smaller one is given back, and so is an error.
    """
    results = list(cells)
    smaller: dict[int, Cell] = {}
    for i, cell in enumerate(cells):
        if isinstance(cell, Cell):
            try:
                found = _find_smaller(cell)
            except ReductionError as error:
                results[i] = error
            else:
                if found is not None:
                    smaller[i] = found
    if not smaller:
        return results
    results_of_smaller = primitive_cells(list(smaller.values()))
    valid = [cell for cell in results_of_smaller if isinstance(cell, Cell)]
    reduced = iter(niggli_cells(valid))
    for i, result in zip(smaller, results_of_smaller, strict=True):
        results[i] = next(reduced) if isinstance(result, Cell) else result
    return results


def _find_smaller(cell: Cell) -> Cell | None:
    """The first smaller cell that pymatgen finds, not reduced."""
    kinds, counts = cell.composition
    units = math.gcd(*counts)
    if units == 1:
        return None
    # pymatgen sorts by the names of the elements
    groups = [np.flatnonzero(cell.kinds == kind) for kind in sorted(kinds, key=kind_name)]
    tolerance = np.divide(TOLERANCE, np.sqrt(np.sum(cell.lattice**2, axis=1)))
    coords = [cell.frac_coords[group] for group in groups]
    vectors = _candidate_periods(coords, 2 * tolerance)
    if len(vectors) == 1 and units * tolerance.max() < 0.99:
        return None  # its one period, 0, is that of no smaller cell
    smaller = _smaller_cell(cell.lattice, coords, vectors, tolerance, units)
    if smaller is None:
        return None
    lattice, coords = smaller
    merged = np.repeat([cell.kinds[group[0]] for group in groups], [len(group) for group in coords])
    return Cell(lattice, merged, np.concatenate(coords))


_NUM_ELEMENTS = 119  # with the unknown one, 0
_NAMES: list[str] = []
_KINDS: dict[str, int] = {}


def kind_of(name: str) -> int:
    """The number that stands for a species, `Fe` or `Fe3+`; for an element, its atomic number."""
    if not _NAMES:
        import gemmi

        _NAMES.extend(gemmi.Element(z).name for z in range(_NUM_ELEMENTS))
        _KINDS.update((name, z) for z, name in enumerate(_NAMES))
    if name not in _KINDS:
        _KINDS[name] = len(_NAMES)
        _NAMES.append(name)
    return _KINDS[name]


def kind_name(kind: int) -> str:
    """The species that a number stands for."""
    kind_of("H")
    return _NAMES[kind]


def named_kinds() -> tuple[str, ...]:
    """The species that are no elements, in the order of their numbers.

    A worker has to call `kind_of` on them before it gets crystals from this process.
    """
    return tuple(_NAMES[_NUM_ELEMENTS:])


def _niggli(
    cells: Sequence[Cell], lll_reduced: Floats, mapping: Floats
) -> Iterator[Cell | ReductionError]:
    lattices = np.stack([cell.lattice for cell in cells])
    with np.errstate(all="ignore"):
        reduced, done = niggli_reduce(lattices, lll_reduced, mapping)
    # pymatgen leaves a crystal untouched whose cell stays about the same
    near = np.abs(reduced - lattices) <= 1e-8 + 1e-5 * np.abs(lattices)
    same = near.all(axis=(1, 2))
    sizes = [len(cell.kinds) for cell in cells]
    owner = np.repeat(np.arange(len(cells)), sizes)
    cartesian = rows_times(np.concatenate([cell.frac_coords for cell in cells]), lattices[owner])
    coords = np.mod(rows_times(cartesian, np.linalg.inv(reduced)[owner]), 1)
    for i, wrapped in enumerate(np.split(coords, np.cumsum(sizes)[:-1])):
        if not done[i]:
            yield ReductionError("has a cell of which no Niggli cell is found")
        elif same[i]:
            yield cells[i]
        else:
            yield Cell(reduced[i], cells[i].kinds, wrapped)


def _candidate_periods(coords: Sequence[Floats], tolerance: Floats) -> Floats:
    """Vectors between atoms of the rarest kind that lead from each atom to one of its kind.

    Args:
        coords: Of the atoms of each kind, (M, 3) fractions of the cell.
        tolerance: (3,) fractions of the cell.

    Returns:
        (V, 3) fractions, the first of them 0.
    """
    first = min(coords, key=len)
    vectors = first - first[0]
    for group in sorted(coords, key=len):
        if len(vectors) == 1:
            break
        step = max(1, _MAX_ELEMENTS // (len(vectors) * len(group)))
        for start in range(0, len(group), step):
            between = group[None, :, :] - group[start : start + step, None, :]
            difference = vectors[:, None, None, :] - between
            difference -= np.round(difference)
            near = (np.abs(difference) < tolerance).all(axis=3)
            vectors = vectors[near.any(axis=2).all(axis=1)]
    return vectors


def _factors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def _supercells(units: int) -> Iterator[tuple[int, int, int]]:
    """Diagonals of the Hermite normal forms that lead from a cell to one of a fraction of its size,
    for each fraction that leaves whole formula units."""
    for size in _factors(units)[1:]:
        for a in _factors(size):
            for e in _factors(size // a):
                yield a, e, size // a // e


@lru_cache(maxsize=512)
def _forms(a: int, e: int, g: int) -> tuple[Floats, Floats]:
    """All Hermite normal forms with a diagonal, (F, 3, 3), and their inverses."""
    b, c, f = np.indices((a, a, e)).reshape(3, -1)
    forms = np.zeros((len(b), 3, 3))
    forms[:, 0, 0], forms[:, 1, 1], forms[:, 2, 2] = a, e, g
    forms[:, 0, 1], forms[:, 0, 2], forms[:, 1, 2] = b, c, f
    return forms, np.linalg.inv(forms)


def _smaller_cell(
    lattice: Floats, coords: Sequence[Floats], vectors: Floats, tolerance: Floats, units: int
) -> tuple[Floats, list[Floats]] | None:
    """The first smaller cell in which the atoms coincide in groups of the right size."""
    strangers = []
    for group in coords:
        difference = group[None] - group[:, None]
        difference = np.abs(difference - np.round(difference))
        apart = np.any(difference > 2 * tolerance, axis=2)
        np.fill_diagonal(apart, val=True)
        strangers.append(apart)
    work = sum(a * a * e for a, e, _ in _supercells(units)) * len(vectors)
    if work > MAX_SUPERCELL_WORK:
        raise ReductionError(
            f"may be a multiple of a smaller cell in so many ways that looking for one takes work "
            f"of {work:.2g}, over the limit of {MAX_SUPERCELL_WORK:.2g}"
        )
    for a, e, g in _supercells(units):
        size = a * e * g
        forms, inverses = _forms(a, e, g)
        step = max(1, _MAX_ELEMENTS // len(vectors))
        good = np.concatenate(
            [
                _are_periods(inverses[start : start + step], vectors, tolerance)
                for start in range(0, len(forms), step)
            ]
        )
        for inverse, form in zip(inverses[good], forms[good], strict=True):
            found = _merge(np.dot(inverse, lattice), form, size, coords, strangers)
            if found is not None:
                return np.dot(np.linalg.inv(form), lattice), found
    return None


def _are_periods(bases: Floats, vectors: Floats, tolerance: Floats) -> Booleans:
    """Which of the bases (F, 3, 3) consist of vectors that are near one of those given, (F,)."""
    difference = bases[:, :, None, :] - vectors[None, None, :, :]
    difference = np.abs(difference - np.round(difference))
    return (difference < tolerance).all(axis=3).any(axis=2).all(axis=1)


def _merge(
    lattice: Floats,
    form: Floats,
    size: int,
    coords: Sequence[Floats],
    strangers: Sequence[Floats],
) -> list[Floats] | None:
    """The atoms of each kind in a smaller cell, averaged where they coincide; None if some do not.

    Args:
        lattice: The smaller cell.
        form: The integer matrix that gives the large cell from it.
        size: How many atoms have to coincide.
        coords: Atoms of each kind in the large cell.
        strangers: Which of them are too far apart in the large cell to be one atom; an atom and
            itself count.
    """
    tolerance = np.divide(TOLERANCE, np.sqrt(np.sum(lattice**2, axis=1)))
    merged = []
    for group, apart in zip(coords, strangers, strict=True):
        at = np.dot(group, form)
        difference = at[None] - at[:, None]
        difference = np.abs(difference - np.round(difference))
        together = (difference < tolerance).all(axis=2) & apart
        if not np.all(together.sum(axis=0) == size):
            return None
        if not all(together[members][:, members].all() for members in together):
            return None
        at = at % 1
        added = np.zeros(len(at), dtype=bool)
        new = []
        for i, members in enumerate(together):
            if added[i]:
                continue
            added[members] = True
            indices = np.flatnonzero(members)
            mean = at[indices[0]]
            for count, index in enumerate(indices[1:]):
                offset = at[index] - mean
                mean += (offset - np.round(offset)) / (count + 2)
            new.append(mean)
        merged.append(np.array(new))
    return merged
