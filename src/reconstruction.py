"""Crystals through a VAE and back: as a function, and from files to files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from ase import Atoms
from ase.data import chemical_symbols
from omegaconf import DictConfig
from pymatgen.core import Structure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from src.commands import cell_of_run, load_vae
from src.data.cif import Crystal, CrystalError, niggli_reduce
from src.data.schema import CrystalBatch
from src.data.structures import (
    NamedStructure,
    Skipped,
    check_numbers,
    read_structures,
    split_batch,
    to_atoms,
    to_crystal,
    to_structure,
    write_structures,
    written_name,
)
from src.metrics.evaluate import SETTINGS
from src.metrics.matching import MatcherPool
from src.utils.formulas import full_formula
from src.utils.inference import inference
from src.utils.output import new_folder
from src.vae_module import VAEModule

log = logging.getLogger(__name__)

MAX_ROWS = 20  # of the table on the terminal
LENGTHS = ("a", "b", "c")
ANGLES = ("alpha", "beta", "gamma")

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
            tasks.append(_prepare(vae, to_crystal(structure), niggli))
        except CrystalError as error:
            raise ValueError(f"structure {i}: {error}") from error
    crystals = _reconstruct(vae, tasks, batch_size, seed if sampled else None, progress)
    return [
        None if c is None else to_atoms(c) if isinstance(s, Atoms) else to_structure(c)
        for s, c in zip(structures, crystals, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Task:
    """A crystal as given, as the model is to see it, and the way from the one to the other.

    Attributes:
        change: (3, 3) integers; coordinates in the cell of `seen` are `frac_coords @ change`, and
            so, but for a rotation, the given lattice is `change @ seen.lattice`.
    """

    given: Crystal
    seen: Crystal
    change: np.ndarray


def _prepare(vae: VAEModule, crystal: Crystal, niggli: bool) -> _Task:
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
        return _Task(crystal, niggli_reduce(crystal), change)
    # The model knows lengths and angles, which a crystal and its mirror image share: it is to see
    # a right-handed cell.
    change = np.eye(3) * np.sign(np.linalg.det(crystal.lattice))
    frac_coords = crystal.frac_coords @ change % 1.0 % 1.0
    return _Task(
        crystal, Crystal(change @ crystal.lattice, crystal.atom_types, frac_coords), change
    )


def _reconstruct(
    vae: VAEModule, tasks: Sequence[_Task], batch_size: int, seed: int | None, progress: bool
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
                done[i] = _lay_over(crystal, tasks[i])
    return done


def _lay_over(crystal: Crystal, task: _Task) -> Crystal | None:
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


def _warn_of_large(vae: VAEModule, tasks: Sequence[_Task]) -> None:
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


# From files to files


def reconstruct(cfg: DictConfig) -> dict[str, Any]:
    """Reconstruct the crystals of files as `configs/reconstruct.yaml` says.

    The new folder `cfg.output` gets files of the names and formats of the input (`.extxyz` for a
    format that is only read; the content of an archive as a folder), `changes.csv` with what
    became of each crystal, and `skipped.csv` with what was left out, and why.

    Returns:
        `crystals`: how many were reconstructed; `matched` and `matched_default`: how many of them
        match under CDVAE's and pymatgen's settings; `skipped`: how many entries `skipped.csv` has.

    Raises:
        ValueError: for a checkpoint, input or output that cannot be used, or if nothing came out.
    """
    vae = load_vae(cfg)
    trained_on, shown = cell_of_run(cfg.ckpt_path), "niggli" if cfg.niggli else "as_given"
    if trained_on not in (None, shown):
        log.warning(
            "The model was trained on cells that are %s, and sees them %s", trained_on, shown
        )
    with new_folder(cfg.output, marker="changes.csv", overwrite=cfg.overwrite) as folder:
        found, skipped = read_structures(cfg.input)
        items, tasks = [], []
        for item in found:
            try:
                tasks.append(_prepare(vae, to_crystal(item.structure), cfg.niggli))
                items.append(item)
            except CrystalError as error:
                skipped.append(Skipped(_where(item), str(error)))
        seed = cfg.seed if cfg.sampled else None
        crystals = _reconstruct(vae, tasks, cfg.batch_size, seed, progress=True)
        for item, crystal in zip(items, crystals, strict=True):
            if crystal is None:
                reason = "the model gives numbers that are not finite, or a cell without volume"
                skipped.append(Skipped(_where(item), reason))
        if all(crystal is None for crystal in crystals):
            first = "".join(f"\n  {where}: {reason}" for where, reason in skipped[:5])
            raise ValueError(f"none of the crystals of {cfg.input} could be reconstructed{first}")

        structures = [None if crystal is None else to_structure(crystal) for crystal in crystals]
        changes = _compare(items, structures, cfg)
        _write(folder, items, structures)
        changes.to_csv(folder / "changes.csv", index=False)
        pd.DataFrame(skipped, columns=["file", "reason"]).to_csv(
            folder / "skipped.csv", index=False
        )
    Console().print(changes_table(changes))
    for where, reason in skipped[:MAX_ROWS]:
        log.warning("Skipped %s: %s", where, reason)
    counts = {
        "crystals": sum(structure is not None for structure in structures),
        "matched": int(changes.matched.sum()),
        "matched_default": int(changes.matched_default.sum()),
        "skipped": len(skipped),
    }
    log.info(
        "%d crystals are in %s; %d match the original (pymatgen's settings: %d); %d skipped, "
        "see skipped.csv",
        counts["crystals"], cfg.output, counts["matched"], counts["matched_default"],
        counts["skipped"],
    )  # fmt: skip
    return counts


def changes_table(changes: pd.DataFrame) -> Table:
    """What became of the first crystals, for the terminal; the largest change of three."""
    table = Table(
        title="Reconstruction minus original",
        caption=f"the first {MAX_ROWS} of {len(changes):,}" if len(changes) > MAX_ROWS else None,
    )
    table.add_column("crystal", overflow="fold")
    table.add_column("formula")
    for name in ("lengths", "angles", "volume", "rms", ""):
        table.add_column(name, justify="right")
    for row in changes.head(MAX_ROWS).to_dict("records"):
        formulas = dict.fromkeys([row["formula"], row["formula_reconstructed"]])
        length, angle = (
            max((row[f"{name}_change"] for name in names), key=abs) for names in (LENGTHS, ANGLES)
        )
        table.add_row(
            row["id"],
            " → ".join(formulas),
            f"{length:+.3f} Å",
            f"{angle:+.2f}°",
            f"{row['volume_change']:+.1%}",
            f"{row['rms']:.4f}" if row["matched"] else "",
            row["status"],
        )
    return table


def _where(item: NamedStructure) -> str:
    return f"{item.source} ({item.id})"


def _compare(
    items: Sequence[NamedStructure], structures: Sequence[Structure | None], cfg: DictConfig
) -> pd.DataFrame:
    """A row for each crystal; changes are reconstruction minus original, in Å and degrees."""
    originals = [item.structure for item in items]
    with MatcherPool(cfg.num_workers, timeout=cfg.timeout) as pool:
        results = pool.match(originals, structures, SETTINGS, progress=True)
    rows = []
    for item, new, cdvae, default in zip(items, structures, *results, strict=True):
        old = item.structure
        row: dict[str, Any] = {
            "id": item.id,
            "file": item.source.as_posix(),
            "num_atoms": len(old),
            "formula": full_formula(old.composition),
            "formula_reconstructed": full_formula(new.composition) if new else "",
        }
        for end, result in (("", cdvae), ("_default", default)):
            row[f"matched{end}"] = result.matched
            row[f"rms{end}"] = np.nan if result.rms is None else result.rms
            row[f"status{end}"] = result.status
        parameters = new.lattice.parameters if new else [np.nan] * 6
        changes = np.subtract(parameters, old.lattice.parameters)
        for name, change in zip(LENGTHS + ANGLES, changes, strict=True):
            row[f"{name}_change"] = change
        row["volume_change"] = new.volume / old.volume - 1 if new else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _write(
    folder: Path, items: Sequence[NamedStructure], structures: Sequence[Structure | None]
) -> None:
    files: dict[Path, list[tuple[Structure, str]]] = {}
    for item, structure in zip(items, structures, strict=True):
        if structure is not None:
            files.setdefault(written_name(item.source), []).append((structure, item.id))
    for path, content in files.items():
        written, ids = zip(*content, strict=True)
        write_structures(folder / path, written, ids)
