"""`CrystalBatch`, the data structure for batches of crystals throughout the project.

This is the reference for shapes and units. A batch has N atoms and B crystals.

| name           | shape         | unit                                                        |
|----------------|---------------|-------------------------------------------------------------|
| atom_types     | (N,) int64    | atomic number; 0 is the mask token                          |
| frac_coords    | (N, 3)        | fraction of the cell                                        |
| lattices       | (B, 3, 3)     | Å, rows are a, b, c                                         |
| num_atoms      | (B,) int64    | atoms in each crystal                                       |
| batch          | (N,) int64    | crystal of each atom                                        |
| ptr            | (B + 1,) int64| first atom of each crystal, then N                          |
| y              | dict of (B,)  | properties by name, NaN where missing                       |
| max_num_atoms  | int           | atoms in the largest crystal (no device synchronization)    |

Computed on access, so that they are always up to date:

| name           | shape         | unit                                                        |
|----------------|---------------|-------------------------------------------------------------|
| lengths        | (B, 3)        | Å                                                           |
| angles         | (B, 3)        | degrees (alpha, beta, gamma)                                |
| angles_radians | (B, 3)        | radians                                                     |
| lengths_scaled | (B, 3)        | lengths / num_atoms^(1/3), Å                                |
| volumes        | (B,)          | Å^3                                                         |
| token_idx      | (N,) int64    | index of each atom within its crystal                       |
| cart_coords    | (N, 3)        | Å                                                           |
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import DummySpecies, Lattice, Structure
from torch import Tensor
from torch_geometric.data import Batch, Data

from src.utils.errors import UserError
from src.utils.geometry import lattices_to_parameters, transform


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a training batch that this process has, when several processes share a batch.

    Attributes:
        first_atom: index of the first atom of this part in the whole batch.
        first_crystal: index of the first crystal of this part in the whole batch.
        num_atoms: number of atoms in the whole batch.
        num_crystals: number of crystals in the whole batch.
        num_parts: number of processes.
    """

    first_atom: int
    first_crystal: int
    num_atoms: int
    num_crystals: int
    num_parts: int

    @property
    def mean_num_atoms(self) -> float:
        """Mean number of atoms per process."""
        return self.num_atoms / self.num_parts

    @property
    def mean_num_crystals(self) -> float:
        """Mean number of crystals per process."""
        return self.num_crystals / self.num_parts


class CrystalBatch(Batch):
    """A batch of crystals with packed atoms; a subclass of `torch_geometric.data.Batch`.

    See the module docstring for fields, shapes and units. Create one with `from_tensors`,
    `from_structures`, `from_atoms` or PyG's `from_data_list`, and a modified copy with `replace`.
    """

    atom_types: Tensor
    frac_coords: Tensor
    lattices: Tensor
    num_atoms: Tensor
    batch: Tensor
    ptr: Tensor

    @classmethod
    def from_tensors(
        cls,
        atom_types: Tensor,
        frac_coords: Tensor,
        lattices: Tensor,
        num_atoms: Tensor,
        y: Mapping[str, Tensor] | None = None,
        max_num_atoms: int | None = None,
        part: Part | None = None,
    ) -> Self:
        """Create a batch from tensors with the layout in the module docstring.

        Args:
            atom_types, frac_coords, lattices, num_atoms, y: see the module docstring.
            max_num_atoms: the largest of `num_atoms`; without it, reading the value synchronizes
                with the device.
            part: describes which part of a larger batch this is.

        Raises:
            ValueError: if the shapes are inconsistent.
        """
        n, b = atom_types.shape[0], num_atoms.shape[0]
        if frac_coords.shape != (n, 3) or lattices.shape != (b, 3, 3):
            raise ValueError(
                f"{n} atom_types and {b} num_atoms require frac_coords ({n}, 3) and lattices "
                f"({b}, 3, 3), not {tuple(frac_coords.shape)} and {tuple(lattices.shape)}"
            )
        for name, value in (y or {}).items():
            if value.shape != (b,):
                raise ValueError(f"y[{name!r}] must have shape ({b},), not {tuple(value.shape)}")
        ptr = torch.nn.functional.pad(num_atoms.cumsum(0), (1, 0))
        index = torch.arange(b, device=num_atoms.device)
        self = cls(
            atom_types=atom_types,
            frac_coords=frac_coords,
            lattices=lattices,
            num_atoms=num_atoms,
            batch=index.repeat_interleave(num_atoms, output_size=n),
            ptr=ptr,
        )
        if y:
            self.y = dict(y)
        self._num_graphs = b
        self._max_num_atoms = max_num_atoms
        self._part = part
        return self

    @classmethod
    def from_structures(cls, structures: Sequence[Structure]) -> Self:
        """Create a batch from pymatgen structures; coordinates and cells are not changed.

        Raises:
            UserError: for a structure without sites, with partial occupancies, or with a site
                without an element; the message gives its index.
        """
        for i, structure in enumerate(structures):
            if not structure.is_ordered:
                raise UserError(f"structure {i} ({structure.formula}) has partial occupancies")
            # the Z of a dummy species is a hash
            if any(isinstance(specie, DummySpecies) for specie in structure.species):
                raise UserError(
                    f"structure {i} ({structure.formula}) has a site without an element"
                )
        return cls._from_arrays(
            [[site.specie.Z for site in s] for s in structures],
            [s.frac_coords for s in structures],
            [s.lattice.matrix for s in structures],
        )

    @classmethod
    def from_atoms(cls, atoms: Sequence[Atoms]) -> Self:
        """Create a batch from ASE atoms; coordinates and cells are not changed.

        Raises:
            UserError: for an empty `Atoms`, one without a three-dimensional cell, or one with an
                atom without an element (X); the message gives its index.
        """
        for i, a in enumerate(atoms):
            if a.cell.rank < 3:
                raise UserError(f"atoms {i} ({a.get_chemical_formula()}) have no 3D cell")
            if (a.numbers < 1).any():
                raise UserError(
                    f"atoms {i} ({a.get_chemical_formula()}) include an atom without an element (X)"
                )
        return cls._from_arrays(
            [a.numbers for a in atoms],
            [a.cell.scaled_positions(a.positions) for a in atoms],
            [a.cell.array for a in atoms],
        )

    @classmethod
    def _from_arrays(cls, atom_types: Sequence, frac_coords: Sequence, lattices: Sequence) -> Self:
        if not len(atom_types):
            raise UserError("cannot create a batch of no crystals")
        counts = [len(a) for a in atom_types]
        if 0 in counts:
            raise UserError(f"crystal {counts.index(0)} has no atoms")
        return cls.from_tensors(
            atom_types=torch.as_tensor(np.concatenate(atom_types), dtype=torch.int64),
            frac_coords=torch.as_tensor(np.concatenate(frac_coords), dtype=torch.float32),
            lattices=torch.as_tensor(np.stack(lattices), dtype=torch.float32),
            num_atoms=torch.tensor(counts),
            max_num_atoms=max(counts),
        )

    @classmethod
    def for_sampling(cls, num_atoms: Tensor, atom_types: Tensor | None = None) -> Self:
        """Create a batch that only defines the number of atoms, and optionally the atom types.

        Args:
            num_atoms: (B,) int64 number of atoms in each crystal.
            atom_types: (N,) atomic numbers, for a model that does not predict them.
        """
        n, b = int(num_atoms.sum()), len(num_atoms)
        zeros = num_atoms.new_zeros
        return cls.from_tensors(
            atom_types=zeros(n) if atom_types is None else atom_types,
            frac_coords=zeros((n, 3), dtype=torch.float32),
            lattices=torch.eye(3, device=num_atoms.device).expand(b, 3, 3),
            num_atoms=num_atoms,
            max_num_atoms=int(num_atoms.max()) if b else 0,
        )

    def replace(
        self,
        atom_types: Tensor | None = None,
        frac_coords: Tensor | None = None,
        lattices: Tensor | None = None,
    ) -> Self:
        """A copy of the batch with the given fields replaced."""
        return CrystalBatch.from_tensors(
            self.atom_types if atom_types is None else atom_types,
            self.frac_coords if frac_coords is None else frac_coords,
            self.lattices if lattices is None else lattices,
            self.num_atoms,
            y=self.y,
            max_num_atoms=self.max_num_atoms,
            part=self._store.__dict__.get("_part"),
        )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """A copy of the batch on another device; unlike in PyG, the original is not moved."""
        return super(CrystalBatch, copy.copy(self)).to(*args, **kwargs)

    @property
    def max_num_atoms(self) -> int:
        known = self._store.__dict__.get("_max_num_atoms")
        return int(self.num_atoms.max()) if known is None else known

    @property
    def part(self) -> Part:
        """The part of a larger batch that this is; by default the whole batch."""
        known = self._store.__dict__.get("_part")
        return known or Part(0, 0, len(self.batch), len(self.num_atoms), 1)

    @property
    def lengths(self) -> Tensor:
        return self.lattices.norm(dim=-1)

    @property
    def lengths_scaled(self) -> Tensor:
        return self.lengths / self.num_atoms[:, None] ** (1 / 3)

    @property
    def angles_radians(self) -> Tensor:
        return lattices_to_parameters(self.lattices)[1]

    @property
    def angles(self) -> Tensor:
        return self.angles_radians.rad2deg()

    @property
    def volumes(self) -> Tensor:
        a, b, c = self.lattices.unbind(dim=1)
        return (torch.linalg.cross(a, b) * c).sum(dim=-1).abs()

    @property
    def token_idx(self) -> Tensor:
        return torch.arange(len(self.batch), device=self.batch.device) - self.ptr[self.batch]

    @property
    def cart_coords(self) -> Tensor:
        return transform(self.frac_coords, self.lattices[self.batch])

    def get_example(self, idx: int) -> Data:
        """Crystal `idx` as a PyG `Data`; PyG's indexing and `to_data_list` call this.

        Raises:
            IndexError: if the batch has no such crystal.
        """
        if not -self.num_graphs <= idx < self.num_graphs:
            raise IndexError(f"there is no crystal {idx} in a batch of {self.num_graphs}")
        i = idx % self.num_graphs
        atoms = slice(int(self.ptr[i]), int(self.ptr[i + 1]))
        fields: dict[str, Any] = {
            "atom_types": self.atom_types[atoms],
            "frac_coords": self.frac_coords[atoms],
            "lattices": self.lattices[i : i + 1],
            "num_atoms": self.num_atoms[i : i + 1],
            "num_nodes": atoms.stop - atoms.start,
        }
        if self.y is not None:
            fields["y"] = {name: value[i : i + 1] for name, value in self.y.items()}
        return Data(**fields)

    def _split(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """atom_types (n,), frac_coords (n, 3) and lattice (3, 3) of each crystal, on the CPU."""
        if bool((self.atom_types < 1).any()):
            raise ValueError("masked atoms (mask token 0) cannot be converted to structures")
        cuts = self.ptr[1:-1].tolist()
        return list(
            zip(
                np.split(self.atom_types.cpu().numpy(), cuts),
                np.split(self.frac_coords.detach().double().cpu().numpy(), cuts),
                self.lattices.detach().double().cpu().numpy(),
                strict=True,
            )
        )

    def to_structure(self) -> list[Structure]:
        """Each crystal as a pymatgen `Structure`.

        Raises:
            ValueError: if atoms are masked.
        """
        return [Structure(Lattice(cell), z.tolist(), x) for z, x, cell in self._split()]

    def to_atoms(self) -> list[Atoms]:
        """Each crystal as ASE `Atoms`.

        Raises:
            ValueError: if atoms are masked.
        """
        return [Atoms(z, scaled_positions=x, cell=cell, pbc=True) for z, x, cell in self._split()]
