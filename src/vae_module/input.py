"""Convert crystals to the kind of cell that a model was trained on."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Structure

from src.data.cell_change import CellChange, change_cell
from src.data.cells import CELLS
from src.data.cif import Crystal, CrystalError
from src.data.schema import CrystalBatch
from src.data.structures import to_crystal
from src.utils.errors import UserError
from src.vae_module.elements import find_unknown, readers

log = logging.getLogger(__name__)

OLD = "niggli"  # assumed for checkpoints that do not record their cell
NAMES = {"niggli": "Niggli", "as_given": "given"}  # names of cells in messages


def to_batch(
    vae: Any, structures: Sequence[Structure] | Sequence[Atoms], cell: str | None = None
) -> CrystalBatch:
    """See `VAEModule.to_batch`."""
    changes = change_cells(vae, structures, cell)
    return pack([change.chosen for change in changes]).to(vae.device)


def change_cells(
    vae: Any, structures: Sequence[Structure] | Sequence[Atoms], cell: str | None = None
) -> list[CellChange]:
    """Convert structures to the cell that the model was trained on, or to another one.

    Raises:
        UserError: if `cell` is not a choice of cell, if there are no structures, or for a structure
            that cannot be used; the message names its index.
    """
    chosen = choose_trained_cell(vae, cell)
    changes = []
    for i, crystal in enumerate(_to_crystals(structures)):
        try:
            changes.append(prepare(vae, crystal, chosen))
        except CrystalError as error:
            raise UserError(f"structure {i}: {error}") from error
    log_cells(vae, changes, chosen)
    return changes


def prepare(vae: Any, crystal: Crystal, cell: str) -> CellChange:
    """Convert a crystal to a cell, if the model knows its elements.

    Raises:
        CrystalError: if it has an element that the model does not know, or cannot be converted.
    """
    if found := find_unknown(torch.from_numpy(crystal.atom_types), *readers(vae)):
        raise CrystalError(found[1])
    return change_cell(crystal, cell)


def choose_trained_cell(vae: Any, cell: str | None = None) -> str:
    """`cell`, or the one that the model was trained on if that is None.

    Raises:
        UserError: if it is not a choice of cell.
    """
    if cell is None:
        return trained_cell(vae) or OLD
    if cell not in CELLS:
        raise UserError(
            f"cell must be one of {', '.join(CELLS)} (None: as in training), not {cell!r}"
        )
    return cell


def trained_cell(vae: Any) -> str | None:
    """The choice of cell that a model was trained on, or None if its checkpoint is too old."""
    return (getattr(vae, "read_options", None) or {}).get("cell")


def log_cells(vae: Any, changes: Sequence[CellChange], cell: str) -> None:
    """Log how many crystals were converted, and whether training used the same cell."""
    done = f"{len(changes)} crystals were kept in their given cells"
    if cell != "as_given":
        num = sum(change.is_changed for change in changes)
        done = f"{num} of {len(changes)} crystals were converted to their {name_of(cell)} cells"
    log_as_in_training(done, cell, trained_cell(vae))


def log_as_in_training(done: str, cell: str, trained: str | None) -> None:
    """Log what was done, and whether training did the same; if not, log a warning."""
    if trained is None:
        log.info("%s; the checkpoint does not record which cells were used in training", done)
    elif trained == cell:
        log.info("%s, as in training", done)
    else:
        log.warning("%s, but the model was trained on %s cells", done, name_of(trained))


def name_of(cell: str) -> str:
    """A choice of cell as an adjective."""
    return NAMES.get(cell, cell)


def pack(crystals: Sequence[Crystal]) -> CrystalBatch:
    """Make a batch of crystals, on the CPU and without converting their cells."""
    counts = [crystal.num_atoms for crystal in crystals]
    return CrystalBatch.from_tensors(
        torch.from_numpy(np.concatenate([crystal.atom_types for crystal in crystals])),
        torch.from_numpy(np.concatenate([crystal.frac_coords for crystal in crystals])).float(),
        torch.from_numpy(np.stack([crystal.lattice for crystal in crystals])).float(),
        torch.tensor(counts),
        max_num_atoms=max(counts),
    )


def _to_crystals(structures: Sequence[Structure] | Sequence[Atoms]) -> list[Crystal]:
    if isinstance(structures, (Structure, Atoms)):
        raise UserError("pass a list of crystals: [structure] for a single one")
    if not len(structures):
        raise UserError("there are no crystals: pass a list of pymatgen Structure or ASE Atoms")
    kind = Atoms if isinstance(structures[0], Atoms) else Structure
    crystals = []
    for i, structure in enumerate(structures):
        if not isinstance(structure, kind):
            raise UserError(
                f"structure {i} is a {type(structure).__name__}: pass a list of pymatgen "
                "Structure or a list of ASE Atoms"
            )
        if isinstance(structure, Atoms):
            structure = structure.copy()
            structure.pbc = True  # off by default in ASE
        try:
            crystals.append(to_crystal(structure))
        except CrystalError as error:
            raise UserError(f"structure {i}: {error}") from error
    return crystals
