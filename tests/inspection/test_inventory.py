import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.inspection.inventory import (
    compositions,
    counts_of,
    crystal_table,
    element_counts,
    summary_of,
)

CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
PEROVSKITE = Structure(
    Lattice.from_parameters(3.9, 4.0, 4.1, 89, 90, 91),
    ["O", "Sr", "O", "Ti", "O"],
    [[0.5, 0.5, 0], [0, 0, 0], [0.5, 0, 0.5], [0.5, 0.5, 0.5], [0, 0.5, 0.5]],
)


def dataset(*structures: Structure) -> CrystalDataset:
    return CrystalDataset.from_batch(CrystalBatch.from_structures(structures))


def empty() -> CrystalDataset:
    return dataset(CSCL).subset(torch.tensor([], dtype=torch.long))


def test_composition_keys_are_equal_for_equal_reduced_formulas():
    other = Structure(Lattice.cubic(4.1), ["Cl", "Cs", "Cl"], [[0, 0, 0], [0.5] * 3, [0.5, 0, 0]])
    found = compositions(dataset(CSCL, PEROVSKITE, CSCL * (1, 2, 3), other, PEROVSKITE * (2, 1, 1)))
    assert [found.index(key) for key in found] == [0, 1, 0, 3, 1]
    assert compositions(empty()) == []


def test_elements_are_counted_once_per_crystal():
    found = element_counts(dataset(PEROVSKITE, CSCL, PEROVSKITE))
    assert list(found.items()) == [("O", 2), ("Cl", 1), ("Ti", 2), ("Sr", 2), ("Cs", 1)]
    assert element_counts(empty()) == {}


def test_a_row_for_each_crystal():
    table = crystal_table(
        {"train": dataset(CSCL, PEROVSKITE), "val": empty(), "test": dataset(CSCL)}
    )
    assert table["split"].tolist() == ["train", "train", "test"]
    assert list(table["split"].cat.categories) == ["train", "val", "test"]
    assert table["num_elements"].tolist() == [2, 3, 2]
    row = table.iloc[1]
    assert row.density == pytest.approx(PEROVSKITE.density, rel=1e-5)
    assert row.volume_per_atom == pytest.approx(PEROVSKITE.volume / 5, rel=1e-5)
    cell = row[["a", "b", "c", "alpha", "beta", "gamma"]].astype(float).tolist()
    assert cell == pytest.approx([3.9, 4.0, 4.1, 89, 90, 91], rel=1e-5)
    assert table["min_distance"].isna().all()
    assert table["space_group"].isna().all()


def test_summaries_ignore_missing_values():
    values = pd.Series([1.0, np.nan, 4.0, np.inf])
    assert summary_of(values) == {"min": 1.0, "mean": 2.5, "max": 4.0, "missing": 2}
    nothing = {"min": None, "mean": None, "max": None}
    assert summary_of(pd.Series([np.nan])) == {**nothing, "missing": 1}
    assert counts_of(pd.Series([3, None, 3, 1])) == {"3.0": 2, "1.0": 1}
