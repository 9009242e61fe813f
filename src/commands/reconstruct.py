"""Read crystals from files, reconstruct them with a VAE and write the results to files."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from pymatgen.core import Structure
from rich.console import Console
from rich.table import Table

from src.commands.trained_model import load_vae
from src.data.cif import CrystalError
from src.data.structures import (
    NamedStructure,
    Skipped,
    read_structures,
    to_crystal,
    to_structure,
    write_structures,
    written_name,
)
from src.metrics.matching import AnyMatcher, open_matcher
from src.metrics.reconstruction.evaluate import SETTINGS
from src.utils.errors import UserError
from src.utils.formulas import full_formula
from src.utils.output import new_folder
from src.vae_module.input import choose_trained_cell, log_cells, prepare
from src.vae_module.reconstruction import cell_asked, reconstruct_crystals

log = logging.getLogger(__name__)

MAX_ROWS = 20  # in the table on the terminal
LENGTHS = ("a", "b", "c")
ANGLES = ("alpha", "beta", "gamma")


def reconstruct(cfg: DictConfig) -> dict[str, Any]:
    """Reconstruct the crystals in files as configured in `configs/reconstruct.yaml`.

    The new folder `cfg.output` contains files with the names and formats of the input files
    (`.extxyz` if a format can be read but not written; a folder for an archive), `changes.csv`,
    which compares each crystal with its reconstruction, and `skipped.csv`, which lists what was
    left out and why. In `changes.csv`, `cell` is `given` if the reconstruction is in the cell of
    the input file. If it could not be converted back, `cell` is the choice of cell that was
    encoded.

    Returns:
        `crystals`: how many were reconstructed; `matched` and `matched_default`: how many of them
        match under CDVAE's and pymatgen's settings; `skipped`: the number of rows in `skipped.csv`.

    Raises:
        UserError: if the checkpoint, input or output cannot be used, or if no crystal could be
            reconstructed.
    """
    matcher = open_matcher(cfg.matcher, cfg.num_workers, cfg.timeout)  # starts no process yet
    vae = load_vae(cfg)
    cell = choose_trained_cell(vae, cell_asked(cfg.cell, cfg.niggli))
    with new_folder(cfg.output, marker="changes.csv", overwrite=cfg.overwrite) as folder:
        found, skipped = read_structures(cfg.input)
        items, changes = [], []
        for item in found:
            try:
                changes.append(prepare(vae, to_crystal(item.structure), cell))
                items.append(item)
            except CrystalError as error:
                skipped.append(Skipped(_where(item), str(error)))
        log_cells(vae, changes, cell)
        seed = cfg.seed if cfg.sampled else None
        crystals = reconstruct_crystals(vae, changes, cfg.batch_size, seed, progress=True)
        for item, crystal in zip(items, crystals, strict=True):
            if crystal is None:
                reason = "the model predicts numbers that are not finite or a cell without volume"
                skipped.append(Skipped(_where(item), reason))
        if all(crystal is None for crystal in crystals):
            first = "".join(f"\n  {where}: {reason}" for where, reason in skipped[:5])
            raise UserError(f"none of the crystals in {cfg.input} could be reconstructed{first}")

        structures = [None if crystal is None else to_structure(crystal) for crystal in crystals]
        # compare in the given cell, or in the encoded cell if it cannot be converted back
        related = [change.atoms is not None for change in changes]
        originals = [
            item.structure if same else to_structure(change.chosen)
            for item, change, same in zip(items, changes, related, strict=True)
        ]
        with matcher:
            table = _compare(items, originals, structures, matcher)
        table["cell"] = ["given" if same else cell for same in related]
        _write(folder, items, structures)
        table.to_csv(folder / "changes.csv", index=False)
        pd.DataFrame(skipped, columns=["file", "reason"]).to_csv(
            folder / "skipped.csv", index=False
        )
    Console().print(changes_table(table))
    for where, reason in skipped[:MAX_ROWS]:
        log.warning("Skipped %s: %s", where, reason)
    counts = {
        "crystals": sum(structure is not None for structure in structures),
        "matched": int(table.matched.sum()),
        "matched_default": int(table.matched_default.sum()),
        "skipped": len(skipped),
    }
    log.info(
        "Wrote %d crystals to %s; %d match the original (pymatgen's settings: %d); %d skipped, "
        "see skipped.csv",
        counts["crystals"], cfg.output, counts["matched"], counts["matched_default"],
        counts["skipped"],
    )  # fmt: skip
    return counts


def changes_table(changes: pd.DataFrame) -> Table:
    """A table for the terminal: the largest changes of length and angle of the first crystals."""
    caption = f"matcher: {changes['matcher'].iloc[0]}"
    if len(changes) > MAX_ROWS:
        caption = f"the first {MAX_ROWS} of {len(changes):,}; {caption}"
    table = Table(title="Reconstruction minus original", caption=caption)
    table.add_column("crystal", overflow="fold")
    table.add_column("formula")
    for name in ("largest length", "largest angle", "volume", "rms", "status"):
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
    items: Sequence[NamedStructure],
    originals: Sequence[Structure],
    structures: Sequence[Structure | None],
    matcher: AnyMatcher,
) -> pd.DataFrame:
    """A row for each crystal; changes are reconstruction minus original, in Å and degrees."""
    results = matcher.match(originals, structures, SETTINGS, progress="matching reconstructions")
    rows = []
    for item, old, new, cdvae, default in zip(items, originals, structures, *results, strict=True):
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
        row["matcher"] = matcher.name
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
