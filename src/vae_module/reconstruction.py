"""Encode and decode crystals, and return them in the given cell and order of atoms."""

import logging
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Structure
from rich.progress import track

from src.data.cell_change import CellChange
from src.data.cif import Crystal, CrystalError
from src.data.structures import check_numbers, split_batch, to_atoms, to_crystal, to_structure
from src.utils.errors import UserError
from src.utils.inference import inference
from src.vae_module.input import choose_trained_cell, log_cells, pack, prepare
from src.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

AnyStructure = TypeVar("AnyStructure", Structure, Atoms)


def reconstruct_structures(
    vae: VAEModule,
    structures: Sequence[AnyStructure],
    batch_size: int = 256,
    niggli: bool | None = None,
    sampled: bool = False,
    seed: int = 0,
    progress: bool = False,
    cell: str | None = None,
) -> list[AnyStructure | None]:
    """Encode and decode crystals.

    Crystals are converted to the kind of cell that the model was trained on. The reconstructions
    are converted back: they have the cell, orientation and order of atoms of the given crystals,
    with all atoms inside the cell.

    Args:
        vae: the model.
        structures: pymatgen `Structure` or ASE `Atoms`. They are not changed.
        batch_size: crystals decoded at a time.
        niggli: True: same as `cell="niggli"`; False: same as `cell="as_given"`.
        sampled: decode a sample from the posterior instead of its mean.
        seed: random seed of the samples. Each depends only on the seed and its position in the
            list.
        progress: show a progress bar.
        cell: the cell to encode, see `choose_cell`; None: as in training. If it is smaller than the
            given cell, atoms that are translations of each other within 0.01 Å are encoded as one
            atom, and are exact translations of each other in the result. If it is larger, only the
            atoms at the positions of the given ones are returned.

    Returns:
        A reconstruction for each structure, of the same type, or None if the model predicts numbers
        that are not finite or a cell without volume. If the atoms of the two cells cannot be
        assigned to each other, it is in the cell that was encoded, and a warning is logged.

    Raises:
        UserError: for a structure that is not an ordered crystal or has an element that the model
            does not know (the message gives its index), or for a `cell` that does not exist or
            contradicts `niggli`.
    """
    chosen = choose_trained_cell(vae, cell_asked(cell, niggli))
    changes = []
    for i, structure in enumerate(structures):
        try:
            changes.append(prepare(vae, to_crystal(structure), chosen))
        except CrystalError as error:
            raise UserError(f"structure {i}: {error}") from error
    log_cells(vae, changes, chosen)
    crystals = reconstruct_crystals(vae, changes, batch_size, seed if sampled else None, progress)
    return [
        None if c is None else to_atoms(c) if isinstance(s, Atoms) else to_structure(c)
        for s, c in zip(structures, crystals, strict=True)
    ]


def cell_asked(cell: str | None, niggli: bool | None) -> str | None:
    """The choice of cell that `cell` and the older argument `niggli` ask for.

    Raises:
        UserError: if they contradict each other.
    """
    if niggli is None:
        return cell
    other = "niggli" if niggli else "as_given"
    if cell not in (None, other):
        raise UserError(f"niggli={niggli} means cell={other}, but cell={cell}: set only cell")
    return other


def reconstruct_crystals(
    vae: VAEModule, changes: Sequence[CellChange], batch_size: int, seed: int | None, progress: bool
) -> list[Crystal | None]:
    """Encode and decode crystals whose cells are already converted.

    Args:
        seed: decode a sample from the posterior with this seed; None: decode its mean.

    Returns:
        For each crystal, the result of `CellChange.undo`, or None if the predicted numbers are not
        finite or the cell has no volume.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    _warn_of_large(vae, changes)
    _warn_of_unrelated(changes)
    done: list[Crystal | None] = [None] * len(changes)
    order = sorted(range(len(changes)), key=lambda i: changes[i].chosen.num_atoms)  # less padding
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with inference(vae):
        for chunk in track(chunks, "Reconstructing", disable=not progress, transient=True):
            batch = pack([changes[i].chosen for i in chunk]).to(vae.device)
            encoded = vae.encode(batch)
            if seed is not None:
                noise = [
                    np.random.default_rng([seed, i]).standard_normal(
                        (changes[i].chosen.num_atoms, vae.latent_dim), dtype=np.float32
                    )
                    for i in chunk
                ]
                posterior = encoded["posterior"]
                drawn = torch.from_numpy(np.concatenate(noise)).to(vae.device)
                encoded["x"] = posterior.mean + posterior.std * drawn
            crystals = split_batch(vae.reconstruct(vae.decode(encoded), batch))
            for i, crystal in zip(chunk, crystals, strict=True):
                done[i] = _given_cell(crystal, changes[i])
    return done


def _given_cell(crystal: Crystal, change: CellChange) -> Crystal | None:
    try:
        check_numbers(crystal)
    except CrystalError:
        return None
    return change.undo(crystal)


def _warn_of_unrelated(changes: Sequence[CellChange]) -> None:
    if num := sum(change.atoms is None for change in changes):
        log.warning(
            "%d of %d crystals cannot be converted back to the given cells: their "
            "reconstructions stay in the cells that were encoded",
            num, len(changes),
        )  # fmt: skip


def _warn_of_large(vae: VAEModule, changes: Sequence[CellChange]) -> None:
    if not vae.training_set:
        return
    largest = max(map(int, vae.training_set["num_atoms"]))
    sizes = [change.chosen.num_atoms for change in changes]
    larger = [num for num in sizes if num > largest]
    if larger:
        log.warning(
            "%d of %d crystals have more atoms (up to %d) than any crystal in the training set "
            "(%d), so their reconstructions may be poor; try their primitive cells",
            len(larger), len(sizes), max(larger), largest,
        )  # fmt: skip
