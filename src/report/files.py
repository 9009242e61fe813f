"""Read and check the files in the output folder of an evaluation."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import ase.io
import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import chemical_symbols
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.data.readers import DataError

T = TypeVar("T")

CRYSTAL_SYSTEMS = {  # number of the last space group of each
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """The content of an evaluation folder, with the worst crystals first.

    Unmatched crystals come first, then the others by descending rms.

    Attributes:
        metrics: the content of `metrics.json`.
        crystals: `per_crystal.csv` with additional columns: `most_common_element` (the heaviest if
            several are equally common), `heaviest_element`, and `crystal_system` if the table has
            space groups.
        originals, reconstructions: a crystal for each row of `crystals`.
        pooled: (B, latent_dim) mean latent of each crystal in `crystals`; None if the folder has no
            `latents.safetensors`.
        training: the content of `training.csv`; empty if the folder has no such file.
    """

    metrics: dict[str, Any]
    crystals: pd.DataFrame
    originals: list[Atoms]
    reconstructions: list[Atoms]
    pooled: np.ndarray | None
    training: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the output folder of an evaluation.

        Raises:
            DataError: if a required file is missing, a file cannot be read, or the files are not
                from the same evaluation; the message names the file.
        """
        metrics = _parse(folder / "metrics.json", lambda path: json.loads(path.read_text()))
        crystals = _read_crystals(folder)
        originals = _parse(folder / "original.extxyz", _read_extxyz)
        reconstructions = _parse(folder / "reconstruction.extxyz", _read_extxyz)
        latents, training = folder / "latents.safetensors", folder / "training.csv"
        pooled = _parse(latents, lambda p: load_file(p)["pooled"]) if latents.is_file() else None
        for name, rows in [
            ("original.extxyz", originals),
            ("reconstruction.extxyz", reconstructions),
            (latents.name, originals if pooled is None else pooled),
        ]:
            if len(rows) != len(crystals):
                raise DataError(
                    f"{folder / name} has {len(rows)} crystals but per_crystal.csv has "
                    f"{len(crystals)}: they are not from the same evaluation, so evaluate again"
                )
        crystals = crystals.assign(**_derived(crystals, originals)).sort_values(
            ["matched", "rms", "coords_rmsd"],
            ascending=[True, False, False],
            na_position="first",
            kind="stable",
        )
        order = crystals.index.to_numpy()
        return cls(
            metrics,
            crystals.reset_index(drop=True),
            [originals[i] for i in order],
            [reconstructions[i] for i in order],
            None if pooled is None else pooled[order].astype(np.float64),
            _parse(training, pd.read_csv) if training.is_file() else pd.DataFrame(),
        )


def _read_crystals(folder: Path) -> pd.DataFrame:
    path = folder / "per_crystal.csv"
    crystals = _parse(path, _read_table)
    needed = {"id", "formula", "num_atoms", "matched", "rms", "coords_rmsd"}
    if missing := sorted(needed - set(crystals.columns)):
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: evaluate again")
    if crystals.empty:
        raise DataError(f"{path} has no rows: there is nothing to report")
    return crystals


def _read_table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    # Read again, because pandas takes the formula of sodium nitride, NaN, for a missing value.
    # As of pandas 3, converters do not prevent that.
    texts = [name for name in ("id", "formula") if name in table]
    return table.assign(**pd.read_csv(path, usecols=texts, dtype=str, keep_default_na=False))


def _read_extxyz(path: Path) -> list[Atoms]:
    return list(ase.io.iread(path, ":", format="extxyz"))


def _parse(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: is this an evaluation folder?") from error
    # ASE raises a RuntimeError if the file ends early
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): evaluate again") from error


def _derived(crystals: pd.DataFrame, originals: list[Atoms]) -> dict[str, list[str]]:
    counts = [np.bincount(atoms.numbers) for atoms in originals]
    most_common = [len(count) - 1 - int(count[::-1].argmax()) for count in counts]
    derived = {
        "most_common_element": [chemical_symbols[number] for number in most_common],
        "heaviest_element": [chemical_symbols[len(count) - 1] for count in counts],
    }
    if "spacegroup" in crystals:
        numbers = pd.to_numeric(crystals["spacegroup"], errors="coerce")
        found = np.searchsorted(list(CRYSTAL_SYSTEMS.values()), numbers.fillna(0))
        names = np.array([*CRYSTAL_SYSTEMS, "unknown"])
        derived["crystal_system"] = names[np.where(numbers.isna(), -1, found)].tolist()
    return derived
