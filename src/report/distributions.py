"""Distributions of two sets of crystals, as the page of a judged set shows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gemmi
import numpy as np
from ase.data import chemical_symbols
from pymatgen.core import Element

from src.metrics.generation.descriptors import Descriptors
from src.report.files import CRYSTAL_SYSTEMS

_NUM_BINS = 40
_OUTER = (0.005, 0.995)  # quantiles; what is outside of them is in the first and the last bin
_MAX_GROUPS = 20  # space groups with a bar of their own
_NUM_ELEMENTS = 103  # up to lawrencium

# title, attribute of `Descriptors`, whether it has whole numbers
_PROPERTIES = (
    ("density, g/cm³", "density", False),
    ("volume per atom, Å³", "volume_per_atom", False),
    ("number of elements", "num_elements", True),
    ("number of atoms in the cell", "num_atoms", True),
)


def histograms(ours: Descriptors, theirs: Descriptors) -> list[dict[str, Any]]:
    """Histograms of properties of two sets.

    Args:
        ours, theirs: of both sets; either may be empty.

    Returns:
        For each property, its `title`, and `x` and `shares` as in `in_bins`. Last are the crystal
        systems and the most frequent space groups, with names for `x`; see `of_space_groups`.
    """
    numbers = [
        of_numbers(title, [getattr(each, name) for each in (ours, theirs)])
        if is_whole
        else in_bins(title, [getattr(each, name) for each in (ours, theirs)], _NUM_BINS)
        for title, name, is_whole in _PROPERTIES
    ]
    return numbers + of_space_groups([each.space_group for each in (ours, theirs)])


def in_bins(title: str, sets: Sequence[np.ndarray], count: int) -> dict[str, Any]:
    """A histogram with equal bins.

    Args:
        title: what the values are.
        sets: (n,) finite values of each set. The bins cover all but the outermost 1 % of all sets
            together; values outside are in the first and the last bin.
        count: of bins.

    Returns:
        `title`; `x`, the centers of the bins, none if there are no values; `width` of a bin; and
        `shares`, for each set, the fraction of its values in each bin.
    """
    values = np.concatenate(sets)
    if not len(values):
        return {"title": title, "x": [], "width": None, "shares": [[] for _ in sets]}
    low, high = np.quantile(values, _OUTER)
    edges = np.linspace(low, high if high > low else low + 1.0, count + 1)
    shares = [np.histogram(each.clip(edges[0], edges[-1]), edges)[0] for each in sets]
    return {
        "title": title,
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "width": float(edges[1] - edges[0]),
        "shares": [
            (each / max(len(of), 1)).tolist() for each, of in zip(shares, sets, strict=True)
        ],
    }


def of_numbers(title: str, sets: Sequence[np.ndarray]) -> dict[str, Any]:
    """A histogram with a bin for each whole number from the smallest to the largest; see `in_bins`.

    Args:
        title: what the numbers are.
        sets: (n,) numbers of at least 0 of each set.
    """
    values = np.concatenate(sets)
    if not len(values):
        return in_bins(title, sets, _NUM_BINS)
    first, last = int(values.min()), int(values.max())
    counts = [np.bincount(each, minlength=last + 1)[first:] for each in sets]
    return {
        "title": title,
        "x": list(range(first, last + 1)),
        "width": 1.0,
        "shares": [
            (each / max(len(of), 1)).tolist() for each, of in zip(counts, sets, strict=True)
        ],
    }


def of_space_groups(sets: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Shares of crystal systems and of space groups.

    Args:
        sets: (n,) numbers of space groups of each set; 0 where there is none.

    Returns:
        Two dicts with `title`, `x`, `width` (none) and `shares`. The first has all crystal systems;
        the second the space groups of which a set has most, in order of their numbers, and `other`,
        which are the rest and the crystals without a space group.
    """
    counts = [np.bincount(each, minlength=231) for each in sets]
    shares = np.stack([each / max(each.sum(), 1) for each in counts])
    largest = shares[:, 1:].max(axis=0)
    most = np.sort(np.argsort(-largest, kind="stable")[:_MAX_GROUPS] + 1)
    most = most[largest[most - 1] > 0]
    bounds = [1, *(last + 1 for last in CRYSTAL_SYSTEMS.values())]
    systems = np.stack([shares[:, a:b].sum(axis=1) for a, b in pairwise(bounds)], axis=1)
    rest = 1 - shares[:, most].sum(axis=1, keepdims=True)
    rest[[not len(each) for each in sets]] = 0
    groups = np.concatenate([shares[:, most], rest], axis=1)
    names = [group_symbol(number) for number in most.tolist()]
    return [
        {"title": title, "x": x, "width": None, "shares": values.tolist()}
        for title, x, values in (
            ("crystal system", list(CRYSTAL_SYSTEMS), systems),
            ("space group (the most frequent)", [*names, "other"] if names else [], groups),
        )
    ]


def group_symbol(number: int) -> str:
    """The symbol of the space group of this number, such as `Fm-3m (225)`."""
    known = gemmi.find_spacegroup_by_number(number)
    name = known.short_name() if known else ""
    if name.startswith("H"):  # gemmi's letter for rhombohedral groups on hexagonal axes
        name = f"R{name[1:]}"
    return f"{name} ({number})"


def element_table(ours: Descriptors, theirs: Descriptors) -> list[dict[str, Any]]:
    """The periodic table, with the share of each element in the atoms of two sets.

    Returns:
        For each element, its `symbol`; `row` and `column` in the table, from 1, with lanthanides
        and actinides in the rows 8 and 9; and the shares, `ours` and `theirs`.
    """
    counts = [each.elements.sum(axis=0) for each in (ours, theirs)]
    shares = [each / max(each.sum(), 1) for each in counts]
    table = []
    for number in range(1, _NUM_ELEMENTS + 1):
        element = Element.from_Z(number)
        is_f = 57 <= number <= 71 or 89 <= number <= 103
        row = element.row + (2 if is_f and element.row in (6, 7) else 0)
        column = (number - 57 if number < 72 else number - 89) + 3 if is_f else element.group
        table.append(
            {
                "symbol": chemical_symbols[number],
                "row": int(row),
                "column": int(column),
                "ours": float(shares[0][number]),
                "theirs": float(shares[1][number]),
            }
        )
    return table
