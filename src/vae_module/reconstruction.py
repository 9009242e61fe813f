"""Crystals through a VAE and back, in the cell and the order of atoms that they were given in."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from pymatgen.core import Structure
from rich.progress import track

from src.data.cif import Crystal, CrystalError, niggli_reduce
from src.data.schema import CrystalBatch
from src.data.structures import check_numbers, split_batch, to_atoms, to_crystal, to_structure
from src.utils.inference import inference
from src.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

AnyStructure = TypeVar("AnyStructure", Structure, Atoms)


def reconstruct_structures(
    vae: VAEModule,
    structures: Sequence[AnyStructure],
    batch_size: int = 256,
    niggli: bool = True,
    sampled: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> list[AnyStructure | None]:
    """Encode and decode crystals.

    A reconstruction has the order of atoms, the choice of cell and the orientation of the crystal
    that was given. Its atoms lie in the cell.

    Args:
        vae: the model.
        structures: pymatgen `Structure` or ASE `Atoms`; they stay as they are.
        batch_size: crystals that are decoded at a time.
        niggli: show the model the Niggli cell, as training does, and express what it makes of it
            in the given cell. The model sees the given cell otherwise.
        sampled: decode one draw from the posterior, not its mean.
        seed: of that draw, which depends on it and on the place in the list alone.
        progress: show a progress bar.

    Returns:
        One for each, of the type that was given; None where the model gives numbers that are not
        finite, or a cell without volume.

    Raises:
        ValueError: for a structure that is no ordered crystal, or has an element that the model
            does not know, named by its index.
    """
    tasks = []
    for i, structure in enumerate(structures):
        try:
            tasks.append(prepare(vae, to_crystal(structure), niggli))
        except CrystalError as error:
            raise ValueError(f"structure {i}: {error}") from error
    crystals = reconstruct_tasks(vae, tasks, batch_size, seed if sampled else None, progress)
    return [
        None if c is None else to_atoms(c) if isinstance(s, Atoms) else to_structure(c)
        for s, c in zip(structures, crystals, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Task:
    """A crystal as given, as the model is to see it, and the way from the one to the other.

    Attributes:
        change: (3, 3) integers; coordinates in the cell of `seen` are `frac_coords @ change`, and
            so, but for a rotation, the given lattice is `change @ seen.lattice`.
    """

    given: Crystal
    seen: Crystal
    change: np.ndarray


def prepare(vae: VAEModule, crystal: Crystal, niggli: bool) -> Task:
    known = vae.encoder.max_num_elements - 1
    if (heaviest := int(crystal.atom_types.max())) > known:
        raise CrystalError(
            f"{chemical_symbols[heaviest]} has atomic number {heaviest}: "
            f"the model knows elements 1 to {known}"
        )
    if niggli:
        # Coordinates come back modulo 1, so ask for those of a thousandth of each axis.
        axes = Crystal(crystal.lattice, np.ones(3, dtype=np.int64), np.eye(3) / 1000)
        moved = niggli_reduce(axes).frac_coords
        change = np.rint(1000 * (moved - np.rint(moved)))
        return Task(crystal, niggli_reduce(crystal), change)
    # The model knows lengths and angles, which a crystal and its mirror image share: it is to see
    # a right-handed cell.
    change = np.eye(3) * np.sign(np.linalg.det(crystal.lattice))
    frac_coords = crystal.frac_coords @ change % 1.0 % 1.0
    return Task(crystal, Crystal(change @ crystal.lattice, crystal.atom_types, frac_coords), change)


def reconstruct_tasks(
    vae: VAEModule, tasks: Sequence[Task], batch_size: int, seed: int | None, progress: bool
) -> list[Crystal | None]:
    """Decoded from a draw of the posterior where there is a seed, else from its mean."""
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, not {batch_size}")
    _warn_of_large(vae, tasks)
    done: list[Crystal | None] = [None] * len(tasks)
    order = sorted(range(len(tasks)), key=lambda i: tasks[i].given.num_atoms)  # to pad little
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with inference(vae):
        for chunk in track(chunks, "Reconstructing", disable=not progress, transient=True):
            seen = [to_structure(tasks[i].seen) for i in chunk]
            batch = CrystalBatch.from_structures(seen).to(vae.device)
            encoded = vae.encode(batch)
            if seed is not None:
                noise = [
                    np.random.default_rng([seed, i]).standard_normal(
                        (tasks[i].given.num_atoms, vae.latent_dim), dtype=np.float32
                    )
                    for i in chunk
                ]
                posterior = encoded["posterior"]
                drawn = torch.from_numpy(np.concatenate(noise)).to(vae.device)
                encoded["x"] = posterior.mean + posterior.std * drawn
            crystals = split_batch(vae.reconstruct(vae.decode(encoded), batch))
            for i, crystal in zip(chunk, crystals, strict=True):
                done[i] = _in_given_cell(crystal, tasks[i])
    return done


def _in_given_cell(crystal: Crystal, task: Task) -> Crystal | None:
    """A reconstruction of `task.seen` in the cell and orientation of `task.given`."""
    try:
        check_numbers(crystal)
    except CrystalError:
        return None
    lattice = task.change @ crystal.lattice
    # the rotation that takes it nearest to the given lattice (Kabsch 1976)
    u, _, vt = np.linalg.svd(lattice.T @ task.given.lattice)
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    frac_coords = crystal.frac_coords @ np.linalg.inv(task.change) % 1.0 % 1.0
    return Crystal(lattice @ rotation, crystal.atom_types, frac_coords)


def _warn_of_large(vae: VAEModule, tasks: Sequence[Task]) -> None:
    if not vae.training_set:
        return
    largest = max(map(int, vae.training_set["num_atoms"]))
    larger = [task.given.num_atoms for task in tasks if task.given.num_atoms > largest]
    if larger:
        log.warning(
            "%d of %d crystals have more atoms (up to %d) than any that the model was trained on "
            "(%d) and may come back wrong; try their primitive cells",
            len(larger), len(tasks), max(larger), largest,
        )  # fmt: skip
