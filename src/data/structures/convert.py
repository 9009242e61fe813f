"""Convert crystals between arrays, pymatgen `Structure`, ASE `Atoms` and batches."""

import math
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.core import DummySpecies, Lattice, Structure

from src.data.crystal import (
    MIN_VOLUME,
    OCCUPANCY_TOLERANCE,
    Crystal,
    CrystalError,
    check_numbers,
)
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
        if not _is_ordered(given):
            raise CrystalError("partial occupancies: not an ordered crystal")
        atom_types, lattice = given.numbers.astype(np.int64), given.cell.array
        frac_coords = given.cell.scaled_positions(given.positions)
    else:
        if not all(given.lattice.pbc):
            raise CrystalError("not periodic in three dimensions")
        if not all(len(site.species) == 1 and _is_full(site.species.num_atoms) for site in given):
            raise CrystalError("partial occupancies: not an ordered crystal")
        # A DummySpecies has no meaningful Z: it is a hash
        kinds = [next(iter(site.species)) for site in given]
        species = [0 if isinstance(kind, DummySpecies) else kind.Z for kind in kinds]
        atom_types, lattice = np.array(species, dtype=np.int64), given.lattice.matrix
        frac_coords = given.frac_coords
    if not len(atom_types):
        raise CrystalError("no atoms")
    if atom_types.min() < 1:
        raise CrystalError("an atom has no element")
    crystal = Crystal(lattice, atom_types, frac_coords % 1.0 % 1.0)  # -1e-17 % 1.0 is 1.0
    check_numbers(crystal)
    return crystal


def _is_ordered(atoms: Atoms) -> bool:
    """Whether all sites are fully occupied by one element, as far as ASE knows."""
    sites = atoms.info.get("occupancy", {})  # where ASE keeps those of a CIF
    if isinstance(sites, dict) and any(
        not isinstance(site, dict) or len(site) != 1 or not all(map(_is_full, site.values()))
        for site in sites.values()
    ):
        return False
    per_atom = [atoms.arrays[n] for n in ("occupancy", "occupancies") if n in atoms.arrays]
    return all(_is_full(value) for values in per_atom for value in values.tolist())


def _is_full(occupancy: Any) -> bool:
    """Whether an occupancy is 1, which is also the default if a CIF gives `.` or `?`."""
    if occupancy is None or occupancy in (".", "?"):
        return True
    try:
        number = float(occupancy)
    except (TypeError, ValueError):
        return False
    return math.isnan(number) or abs(number - 1) <= OCCUPANCY_TOLERANCE


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
