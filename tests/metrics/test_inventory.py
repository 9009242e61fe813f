import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.metrics.inventory import (
    compositions,
    counts_of,
    crystal_table,
    element_counts,
    kind_of,
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


def test_compositions_are_those_of_reduced_formulas():
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


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("atom 3 has occupancy 0.5: not an ordered crystal", "partial occupancy"),
        ("partial occupancies: not an ordered crystal", "partial occupancy"),
        ("atoms 0 and 3 are 0.123 Å apart, closer than 0.5 Å", "overlapping atoms"),
        ("two sites share one position", "overlapping atoms"),
        ("21 atoms: more than 20", "too many atoms"),
        ("400 sites under 192 symmetry operations: more than 10000 atoms", "too many atoms"),
        ("'Wat' is no element", "unknown element"),
        ("atomic number 103 is outside 1 to 99", "element out of range"),
        ("unknown space group 'P 99'", "unreadable symmetry"),
        ("cell angle 190.0 is not between 0 and 180 degrees", "impossible cell"),
        ("no cell has these three angles", "impossible cell"),
        ("a lattice entry is not a number below 10000 Å", "impossible cell"),
        ("no atoms with fractional coordinates", "no atoms"),
        ("_cell_length_a is missing", "damaged file"),
        ("_atom_site_fract_x of atom 2 is ?, not a number", "damaged file"),
        ("frame 7 has 'abc' and 3 apples: whatever", "frame has and apples"),
        ("12", "12"),
    ],
)
def test_kinds_of_reasons(reason, kind):
    assert kind_of(reason) == kind


def test_summary_leaves_out_what_is_missing():
    values = pd.Series([1.0, np.nan, 4.0, np.inf])
    assert summary_of(values) == {"min": 1.0, "mean": 2.5, "max": 4.0, "missing": 2}
    nothing = {"min": None, "mean": None, "max": None}
    assert summary_of(pd.Series([np.nan])) == {**nothing, "missing": 1}
    assert counts_of(pd.Series([3, None, 3, 1])) == {"3.0": 2, "1.0": 1}
