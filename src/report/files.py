"""What the folder of an evaluation holds, read and checked."""

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

CRYSTAL_SYSTEMS = {  # by the number of their last space group
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
    """The files of an evaluation, worst crystals first: not matched, then by rms.

    Attributes:
        metrics: of `metrics.json`.
        crystals: of `per_crystal.csv`, and columns that are derived from the originals:
            `most_common_element` (of several the heaviest), `heaviest_element`, and, where there
            are space groups, `crystal_system`.
        originals, reconstructions: one for each row of `crystals`.
        pooled: (B, latent_dim), a row for each of `crystals`; None without `latents.safetensors`.
        training: of `training.csv`; empty without that file.
    """

    metrics: dict[str, Any]
    crystals: pd.DataFrame
    originals: list[Atoms]
    reconstructions: list[Atoms]
    pooled: np.ndarray | None
    training: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read all of a folder.

        Raises:
            DataError: if a file that is needed is absent, one cannot be read, or they do not
                belong together; the message names it.
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
                    f"{folder / name} has {len(rows)} crystals and per_crystal.csv beside it "
                    f"{len(crystals)}: they are not of one evaluation, so evaluate again"
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
    # converters, since pandas would take the formula of sodium nitride, NaN, for a missing value
    crystals = _parse(path, lambda p: pd.read_csv(p, converters={"id": str, "formula": str}))
    needed = {"id", "formula", "num_atoms", "matched", "rms", "coords_rmsd"}
    if missing := sorted(needed - set(crystals.columns)):
        raise DataError(f"{path} has no column {', '.join(missing)}: evaluate again")
    if crystals.empty:
        raise DataError(f"{path} has no rows: there is nothing to report")
    return crystals


def _read_extxyz(path: Path) -> list[Atoms]:
    return list(ase.io.iread(path, ":", format="extxyz"))


def _parse(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise DataError(f"there is no {path}: is this the folder of an evaluation?") from error
    # ASE ends in a RuntimeError where a file does
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): evaluate again") from error


def _derived(crystals: pd.DataFrame, originals: list[Atoms]) -> dict[str, list[str]]:
    counts = [np.bincount(atoms.numbers) for atoms in originals]
    common = [len(count) - 1 - int(count[::-1].argmax()) for count in counts]
    derived = {
        "most_common_element": [chemical_symbols[number] for number in common],
        "heaviest_element": [chemical_symbols[len(count) - 1] for count in counts],
    }
    if "spacegroup" in crystals:
        numbers = pd.to_numeric(crystals["spacegroup"], errors="coerce")
        found = np.searchsorted(list(CRYSTAL_SYSTEMS.values()), numbers.fillna(0))
        names = np.array([*CRYSTAL_SYSTEMS, "unknown"])
        derived["crystal_system"] = names[np.where(numbers.isna(), -1, found)].tolist()
    return derived
