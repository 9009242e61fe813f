"""Tabulate the crystals of a data set, the rejected crystals and the duplicates."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from ase.data import atomic_masses, chemical_symbols

from src.data.dataset import CrystalDataset
from src.data.rejections import kind_of
from src.inspection.analysis import LoadStructures, chunks
from src.inspection.duplicates import Duplicates, DuplicateSearch
from src.utils.formulas import reduced_formula

QUANTITIES = {
    "num_atoms": "atoms per cell",
    "num_elements": "number of elements",
    "volume_per_atom": "volume per atom, Å³",
    "density": "density, g/cm³",
    "min_distance": "shortest distance, Å",
    "a": "a, Å",
    "b": "b, Å",
    "c": "c, Å",
    "alpha": "α, degrees",
    "beta": "β, degrees",
    "gamma": "γ, degrees",
}
"""Numeric columns of a `crystal_table` and their labels."""

PROPERTY_PREFIX = "y."
"""Prefix of the property columns of a `crystal_table`."""


def quantity_names(crystals: pd.DataFrame) -> list[str]:
    """The numeric columns of a `crystal_table`, properties last."""
    return [*QUANTITIES, *(str(name) for name in crystals if str(name).startswith(PROPERTY_PREFIX))]


COPY_RMS = 0.01  # over (V/N)^(1/3); matches below it have practically the same coordinates

DENSITY_UNIT = 1.660539  # one atomic mass unit per Å^3 in g/cm^3 (CODATA 2018)


def crystal_table(datasets: Mapping[str, CrystalDataset]) -> pd.DataFrame:
    """Build a table with a row for each crystal of all splits, one split after the other.

    The columns are `split` (categorical), `id`, `space_group`, those of `QUANTITIES`, and the
    properties with the prefix `PROPERTY_PREFIX`. `min_distance` and `space_group` are slow to
    compute and left empty here.
    """
    tables = [_crystals_of(name, dataset) for name, dataset in datasets.items()]
    table = pd.concat(tables, ignore_index=True)
    table["split"] = pd.Categorical(table["split"], list(datasets))
    return table


def _crystals_of(name: str, dataset: CrystalDataset) -> pd.DataFrame:
    batch = dataset.batch(torch.arange(len(dataset)))
    masses = torch.from_numpy(atomic_masses)[batch.atom_types]
    mass = torch.zeros(len(dataset), dtype=masses.dtype).index_add(0, batch.batch, masses)
    columns: dict[str, Any] = {
        "split": [name] * len(dataset),
        "id": list(dataset.ids),
        "num_atoms": batch.num_atoms,
        "num_elements": [len(z) for z, _ in _elements_by_crystal(dataset)],
        "volume_per_atom": batch.volumes / batch.num_atoms,
        "density": DENSITY_UNIT * mass / batch.volumes,
        "min_distance": np.nan,
        **dict(zip("abc", batch.lengths.T, strict=True)),
        **dict(zip(("alpha", "beta", "gamma"), batch.angles.T, strict=True)),
        "space_group": pd.array([pd.NA] * len(dataset), dtype="Int64"),
    }
    return pd.DataFrame(columns | {PROPERTY_PREFIX + k: v.numpy() for k, v in dataset.y.items()})


def compositions(dataset: CrystalDataset) -> list[bytes]:
    """A key for each crystal, equal for crystals with the same reduced formula."""
    return [
        np.concatenate([z, counts // np.gcd.reduce(counts)]).astype(np.uint16).tobytes()
        for z, counts in _elements_by_crystal(dataset)
    ]


def _elements_by_crystal(dataset: CrystalDataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the distinct atomic numbers of each crystal, ascending, and their atom counts."""
    num = len(dataset)
    crystal = np.repeat(np.arange(num), dataset.num_atoms.numpy())
    keys, counts = np.unique(256 * crystal + dataset.atom_types.numpy(), return_counts=True)
    cuts = np.searchsorted(keys, 256 * np.arange(1, num))
    if num:
        yield from zip(np.split(keys % 256, cuts), np.split(counts, cuts), strict=True)


def element_counts(dataset: CrystalDataset) -> dict[str, int]:
    """Number of crystals that contain each element, by symbol, in order of atomic number."""
    counts = Counter(int(z) for zs, _ in _elements_by_crystal(dataset) for z in zs)
    return {chemical_symbols[z]: counts[z] for z in sorted(counts)}


def rejected_table(rejected: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Build a table with a row for each rejected crystal.

    The columns are `split`, `where` (file, row), `material_id`, `kind` and `reason`.

    Args:
        rejected: the records from `DataModule.rejected`.
    """
    columns = ["split", "where", "material_id", "kind", "reason"]
    rows = [{"kind": kind_of(row["reason"]), **row} for row in rejected]
    return pd.DataFrame(rows, columns=columns)


def summary_of(values: pd.Series) -> dict[str, float | int | None]:
    """`min`, `mean` and `max` of the finite values (None if there are none), and the number of
    values that are `missing` or not finite."""
    finite = values[np.isfinite(values.astype(float))].astype(float)
    summary = {name: getattr(finite, name)() if len(finite) else None for name in _SUMMARY}
    return {**summary, "missing": len(values) - len(finite)}


_SUMMARY = ("min", "mean", "max")


def counts_of(values: pd.Series) -> dict[str, int]:
    """Count how often each value occurs, most frequent first, ignoring missing values."""
    return {str(value): int(n) for value, n in values.value_counts().items() if n}


def pair_table(
    crystals: pd.DataFrame, duplicates: Duplicates, load: LoadStructures
) -> pd.DataFrame:
    """Build a table with a row for each search that found a match.

    The columns are `split` and `id` of a crystal, `in_split` and `matches` (the split and ID of the
    crystal that it matches), `formula`, `num_atoms`, `matched_num_atoms`, `rms` in units of
    (V/N)^(1/3), and `volume_ratio`, the ratio of the two volumes per atom, which the matcher
    ignores.
    """
    found = [search for search in duplicates.searches if search.match is not None]
    matches = np.array([(s.crystal, s.match) for s in found], dtype=int).reshape(-1, 2)
    one, other = (crystals.iloc[column].reset_index() for column in matches.T)
    formulas = [
        reduced_formula(structure.composition)
        for part in chunks(matches[:, 0])
        for structure in load(part)
    ]
    return pd.DataFrame(
        {
            "split": one["split"],
            "id": one["id"],
            "in_split": other["split"],
            "matches": other["id"],
            "formula": formulas,
            "num_atoms": one["num_atoms"],
            "matched_num_atoms": other["num_atoms"],
            "rms": [search.rms for search in found],
            "volume_ratio": one["volume_per_atom"] / other["volume_per_atom"],
        }
    )


def _is_copy(search: DuplicateSearch) -> bool:
    return search.rms is not None and search.rms < COPY_RMS


def duplicate_summary(
    splits: pd.Series, selected: np.ndarray, duplicates: Duplicates
) -> dict[str, Any]:
    """Count the duplicates.

    Args:
        splits: split of each crystal (categorical).
        selected: whether duplicates of each crystal were searched for.
        duplicates: the result of `find_duplicates`.

    Returns:
        A dict with

        - `asked`: number of selected crystals, by split;
        - counts by split of the crystal and split searched, such as `found["test"]["train"]`:
          `found` (matches), `copies` (matches with an rms below `COPY_RMS`), `cut_short` (no match,
          but not compared with all candidates) and `unanswered` (no match, but some comparisons had
          no result);
        - the counts of `Duplicates`, and `num_copies_found_by_check`.
    """
    names = list(splits.cat.categories)
    codes = splits.cat.codes.to_numpy()
    kinds: dict[str, dict[str, dict[str, int]]] = {
        kind: {name: dict.fromkeys(names[: i + 1], 0) for i, name in enumerate(names)}
        for kind in ("found", "copies", "cut_short", "unanswered")
    }
    for search in duplicates.searches:
        own, searched = names[codes[search.crystal]], names[search.split]
        kinds["found"][own][searched] += search.match is not None
        kinds["copies"][own][searched] += _is_copy(search)
        kinds["cut_short"][own][searched] += search.is_cut_short
        kinds["unanswered"][own][searched] += search.match is None and search.num_unanswered > 0
    return {
        "asked": {name: int(selected[codes == i].sum()) for i, name in enumerate(names)},
        **kinds,
        "num_comparisons": duplicates.num_comparisons,
        "num_unanswered": duplicates.num_unanswered,
        "num_not_reduced": len(duplicates.not_reduced),
        "num_checked": duplicates.num_checked,
        "num_found_by_check": duplicates.num_found_by_check,
        "num_copies_found_by_check": sum(s.is_checked and _is_copy(s) for s in duplicates.searches),
    }
