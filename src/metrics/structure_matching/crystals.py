"""Crystals of any form, prepared for matching."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from src.metrics.structure_matching.reduction import (
    Cell,
    ReductionError,
    kind_name,
    kind_of,
    niggli_cells,
    primitive_cells,
)

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from src.data.crystal import Crystal
    from src.data.schema import CrystalBatch

    OneOrMore: TypeAlias = "Structure | Atoms | Crystal | CrystalBatch | None"
    AnyCrystals: TypeAlias = "PreparedCrystals | CrystalBatch | Sequence[OneOrMore]"

Formula: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


class PreparedCrystals:
    """Crystals whose Niggli cells and primitive cells are kept, once they were needed.

    Pass it to `match` and the others in place of crystals that are matched more than once: with
    several settings, noise levels or samples.

    Args:
        crystals: Ordered crystals as pymatgen's Structures, ASE's Atoms or CrystalBatches, in a
            list, or one batch. None for one that is missing.
    """

    def __init__(self, crystals: AnyCrystals) -> None:
        self._given: list[Cell | ReductionError] = list(_cells(crystals))
        self._niggli: dict[int, Cell | ReductionError] = {}
        self._primitive: dict[int, Cell | ReductionError] = {}
        self._formulas: dict[int, Formula | None] = {}

    def __len__(self) -> int:
        return len(self._given)

    def formula(self, index: int) -> Formula | None:
        """Kinds of atoms and their numbers without common factor; None for what is no crystal."""
        if index not in self._formulas:
            cell = self._given[index]
            self._formulas[index] = _formula(cell) if isinstance(cell, Cell) else None
        return self._formulas[index]

    def formula_text(self, index: int) -> str:
        """As `Na1 Cl1`, for messages."""
        kinds, counts = self.formula(index) or ((), ())
        return " ".join(f"{kind_name(k)}{n}" for k, n in zip(kinds, counts, strict=True))

    def cells(self, indices: Iterable[int], primitive: bool) -> list[Cell | ReductionError]:
        """Reduced cells: Niggli cells, or those of the primitive cells."""
        wanted = list(indices)
        new = [i for i in dict.fromkeys(wanted) if i not in self._niggli]
        valid = [i for i in new if isinstance(self._given[i], Cell)]
        given = [cell for i in valid if isinstance(cell := self._given[i], Cell)]
        self._niggli.update((i, self._given[i]) for i in new)
        self._niggli.update(zip(valid, niggli_cells(given), strict=True))
        if not primitive:
            return [self._niggli[i] for i in wanted]
        new = [i for i in dict.fromkeys(wanted) if i not in self._primitive]
        found = primitive_cells([self._niggli[i] for i in new])
        self._primitive.update(zip(new, found, strict=True))
        return [self._primitive[i] for i in wanted]

    def part(self, indices: Iterable[int]) -> PreparedCrystals:
        """Some of the crystals, with what is known of them."""
        wanted = list(indices)
        part = PreparedCrystals([])
        part._given = [self._given[i] for i in wanted]
        for mine, other in zip(self.reduced(), part.reduced(), strict=True):
            other.update((k, mine[i]) for k, i in enumerate(wanted) if i in mine)
        return part

    def __getstate__(self) -> tuple[Any, ...]:
        same = [i for i, cell in self._primitive.items() if cell is self._niggli.get(i)]
        other = {i: cell for i, cell in self._primitive.items() if cell is not self._niggli.get(i)}
        given = dict(enumerate(self._given))
        return same, *map(pack, (given, self._niggli, other))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._formulas = {}
        same, *packed = state
        given, self._niggli, self._primitive = map(unpack, packed)
        self._given = list(given.values())
        self._primitive.update((i, self._niggli[i]) for i in same)

    def reduced(self) -> list[dict[int, Cell | ReductionError]]:
        """The Niggli cells and the primitive cells so far, by index."""
        return [self._niggli, self._primitive]

    def learn(
        self, indices: Sequence[int], reduced: Sequence[dict[int, Cell | ReductionError]]
    ) -> None:
        """Keep what `reduced` of a part with these indices gave elsewhere."""
        for mine, other in zip(self.reduced(), reduced, strict=True):
            mine.update((indices[k], cell) for k, cell in other.items())

    def num_atoms(self, index: int) -> int:
        """0 for what is no crystal."""
        cell = self._given[index]
        return len(cell.kinds) if isinstance(cell, Cell) else 0

    def forget(self, indices: Iterable[int]) -> None:
        """Keep the reduced cells of these no longer."""
        for i in indices:
            self._niggli.pop(i, None)
            self._primitive.pop(i, None)


Packed = tuple[list[int], Any, Any, Any, list[int], dict[int, ReductionError]]


def pack(cells: dict[int, Cell | ReductionError]) -> Packed:
    """A few large arrays, which travel to other processes faster than many small ones."""
    errors = {i: cell for i, cell in cells.items() if isinstance(cell, ReductionError)}
    valid = {i: cell for i, cell in cells.items() if isinstance(cell, Cell)}
    if not valid:
        return list(cells), None, None, None, [], errors
    return (
        list(cells),
        np.stack([cell.lattice for cell in valid.values()]),
        np.concatenate([cell.kinds for cell in valid.values()]),
        np.concatenate([cell.frac_coords for cell in valid.values()]),
        [len(cell.kinds) for cell in valid.values()],
        errors,
    )


def unpack(packed: Packed) -> dict[int, Cell | ReductionError]:
    """The cells that were packed, as views of the large arrays."""
    indices, lattices, kinds, coords, counts, errors = packed
    cells: dict[int, Cell | ReductionError] = {}
    valid = start = 0
    for i in indices:
        if i in errors:
            cells[i] = errors[i]
        else:
            end = start + counts[valid]
            cells[i] = Cell(lattices[valid], kinds[start:end], coords[start:end])
            valid, start = valid + 1, end
    return cells


def prepare(crystals: AnyCrystals) -> PreparedCrystals:
    """`PreparedCrystals` of crystals that may be prepared already."""
    return crystals if isinstance(crystals, PreparedCrystals) else PreparedCrystals(crystals)


def _formula(cell: Cell) -> Formula:
    kinds, counts = cell.composition
    divisor = math.gcd(*counts)
    return kinds, tuple(count // divisor for count in counts)


def _cells(crystals: Any) -> Iterable[Cell | ReductionError]:
    if _is_batch(crystals):
        crystals = [crystals]
    for crystal in crystals:
        if _is_batch(crystal):
            yield from _cells_of_batch(crystal)
        else:
            yield _cell(crystal)


def _is_batch(crystals: Any) -> bool:
    return hasattr(crystals, "lattices") and hasattr(crystals, "atom_types")


def _cells_of_batch(batch: CrystalBatch) -> Iterable[Cell | ReductionError]:
    kinds, coords, lattices = (
        tensor.detach().cpu().numpy() for tensor in (batch.atom_types, batch.frac_coords,
                                                     batch.lattices)
    )  # fmt: skip
    ends = np.cumsum(batch.num_atoms.cpu().numpy())
    for lattice, start, end in zip(lattices, [0, *ends[:-1]], ends, strict=True):
        yield _checked(
            lattice.astype(np.float64),
            kinds[start:end].astype(np.int64),
            coords[start:end].astype(np.float64),
        )


def _cell(crystal: Any) -> Cell | ReductionError:
    if crystal is None:
        return ReductionError("could not be built")
    if hasattr(crystal, "get_scaled_positions"):  # Atoms
        if not crystal.pbc.all():
            return ReductionError("is not periodic in three dimensions")
        lattice = crystal.cell.array.astype(np.float64)
        if not abs(np.linalg.det(lattice)) > 0:
            return ReductionError(f"has a cell of volume {abs(np.linalg.det(lattice))} Å^3")
        coords = np.dot(crystal.positions, np.linalg.inv(lattice))
        return _checked(lattice, crystal.numbers.astype(np.int64), coords)
    if hasattr(crystal, "atom_types"):
        return _checked(crystal.lattice, crystal.atom_types.astype(np.int64), crystal.frac_coords)
    kinds = np.empty(len(crystal), dtype=np.int64)
    for i, site in enumerate(crystal):
        species = site.species
        if len(species) != 1 or species.num_atoms != 1:
            return ReductionError("has partial occupancies")
        kinds[i] = _kind_of_species(next(iter(species)))
    return _checked(crystal.lattice.matrix, kinds, crystal.frac_coords)


@lru_cache(maxsize=1024)
def _kind_of_species(species: Any) -> int:
    return kind_of(str(species))


def _checked(lattice: np.ndarray, kinds: np.ndarray, coords: np.ndarray) -> Cell | ReductionError:
    if not len(kinds):
        return ReductionError("has no atoms")
    return Cell(np.asarray(lattice, np.float64), kinds, np.asarray(coords, np.float64))
