"""Pairs of crystals of one composition, and many of them laid out as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from src.metrics.structure_matching.arrays import Floats, Integers, rows_times
from src.metrics.structure_matching.reduction import Cell


class Layout(NamedTuple):
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
def _layout_of(sizes: tuple[int, ...]) -> Layout:
    counts = np.array(sizes)
    starts = np.cumsum(counts) - counts
    kinds = np.split(np.arange(counts.sum()), starts[1:])
    return Layout(
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
class Pair:
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
    layout: Layout


def sort_atoms(index: int, first: Cell, second: Cell) -> Pair | None:
    """The pair with its atoms sorted; None if compositions or sizes differ."""
    if first.composition != second.composition:
        return None
    # pymatgen translates by the kind that is rarest, and comes first in the second crystal
    ranking = second.ranking
    counts = second.composition[1]
    layout = _layout_of(tuple(counts[k] for k in ranking))
    return Pair(index, first, second, *first.sorted_by(ranking), *second.sorted_by(ranking), layout)


class PairArrays:
    """B pairs behind one another.

    Attributes:
        pairs: They themselves.
        num_atoms, num_translations, num_entries, num_kinds: (B,) see `Layout`.
        rows, columns, widths, sizes, kind_atoms, kind_entries: See `Layout`, of all pairs.
        atom_starts, entry_starts, kind_starts: (B,) where those of a pair begin.
        cartesian: Atoms of the first crystals in Å.
        target: Atoms of the second crystals, fractions of their cells.
    """

    def __init__(self, pairs: Sequence[Pair], lattices: Floats) -> None:
        """`lattices` are those of the first crystals, (B, 3, 3) in Å."""
        self.pairs = pairs
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
