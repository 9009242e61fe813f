"""Convert crystals between arrays, pymatgen `Structure`, ASE `Atoms` and batches."""

import numpy as np
from ase import Atoms
from pymatgen.core import DummySpecies, Lattice, Structure

from src.data.crystal import MAX_LATTICE_ENTRY, MIN_VOLUME, Crystal, CrystalError
from src.data.schema import CrystalBatch


def to_crystal(given: Structure | Atoms) -> Crystal:
    """The elements, cell and coordinates (wrapped into the cell) of a structure.

    Raises:
        CrystalError: if the structure is not periodic in three dimensions, has partial occupancies,
            an atom without an element or no atoms, or is rejected by `check_numbers`.
    """
    if isinstance(given, Atoms):
        if not given.pbc.all() or not given.cell.volume >= MIN_VOLUME:
            raise CrystalError("not periodic in three dimensions")
        sites = given.info.get("occupancy", {}).values()  # where ASE keeps those of a CIF
        if any(set(site.values()) != {1.0} for site in sites):
            raise CrystalError("partial occupancies: not an ordered crystal")
        atom_types, lattice = given.numbers.astype(np.int64), given.cell.array
        frac_coords = given.cell.scaled_positions(given.positions)
    else:
        if not all(given.lattice.pbc):
            raise CrystalError("not periodic in three dimensions")
        if not given.is_ordered:
            raise CrystalError("partial occupancies: not an ordered crystal")
        # A DummySpecies has no meaningful Z: it is a hash
        species = [0 if isinstance(s, DummySpecies) else s.Z for s in given.species]
        atom_types, lattice = np.array(species, dtype=np.int64), given.lattice.matrix
        frac_coords = given.frac_coords
    if not len(atom_types):
        raise CrystalError("no atoms")
    if atom_types.min() < 1:
        raise CrystalError("an atom has no element")
    crystal = Crystal(lattice, atom_types, frac_coords % 1.0 % 1.0)  # -1e-17 % 1.0 is 1.0
    check_numbers(crystal)
    return crystal


def to_structure(crystal: Crystal) -> Structure:
    """The crystal as a pymatgen `Structure`."""
    return Structure(Lattice(crystal.lattice), crystal.atom_types.tolist(), crystal.frac_coords)


def to_atoms(crystal: Crystal, id: str | None = None) -> Atoms:
    """The crystal as ASE `Atoms`, with `info["id"]` if an ID is given."""
    return Atoms(
        numbers=crystal.atom_types,
        scaled_positions=crystal.frac_coords,
        cell=crystal.lattice,
        pbc=True,
        info={} if id is None else {"id": id},
    )


def split_batch(batch: CrystalBatch) -> list[Crystal]:
    """The crystals in a batch, without any checks of their numbers."""
    batch = batch.to("cpu")
    boundaries = batch.ptr[1:-1].tolist()
    return [
        Crystal(*arrays)
        for arrays in zip(
            batch.lattices.double().numpy(),
            np.split(batch.atom_types.numpy(), boundaries),
            np.split(batch.frac_coords.double().numpy(), boundaries),
            strict=True,
        )
    ]


def check_numbers(crystal: Crystal) -> None:
    """Reject a crystal whose coordinates or cell are not usable numbers.

    Raises:
        CrystalError: if a number is not finite, or the cell is huge or has no volume.
    """
    if not np.isfinite(crystal.frac_coords).all():
        raise CrystalError("a coordinate is not finite")
    if not np.abs(crystal.lattice).max() < MAX_LATTICE_ENTRY:
        raise CrystalError(f"a lattice entry is not a number below {MAX_LATTICE_ENTRY:g} Å")
    if not (volume := abs(np.linalg.det(crystal.lattice))) >= MIN_VOLUME:
        raise CrystalError(f"the cell has no volume ({volume:.1e} Å^3)")
