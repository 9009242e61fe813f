"""Inspect a data set before training: its contents, rejected crystals and duplicates."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pymatgen.core import Structure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from src.data import DataModule
from src.data.dataset import CrystalDataset
from src.data.readers import DataError
from src.inspection.analysis import Indices, analyze_crystals
from src.inspection.duplicates import find_duplicates
from src.inspection.inventory import (
    compositions,
    counts_of,
    crystal_table,
    duplicate_summary,
    element_counts,
    pair_table,
    quantity_names,
    rejected_table,
    summary_of,
)
from src.inspection.page import SummaryTable, crystal_systems, summary_tables, write_inspection
from src.metrics.matching import MatcherSettings
from src.utils.output import new_folder
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)

_MAX_KINDS = 3  # kinds of rejections named in the last line


def inspect_data(cfg: DictConfig) -> dict[str, Any]:
    """Inspect a data set and write a report to the folder `cfg.output`.

    The folder contains

    - `index.html`: a page with tables and histograms that works offline;
    - `summary.json`: the numbers on the page, and the last line of the terminal output as `line`;
    - `duplicates.csv`: duplicate pairs, with the columns of `pair_table`: for each crystal, the
      earlier crystal that it matches in its own split and in each preceding split;
    - `rejected.csv`: the rejected crystals and reasons, with the columns of `rejected_table`.

    Args:
        cfg: the options in `configs/inspect_data.yaml`.

    Returns:
        The content of `summary.json`.

    Raises:
        DataError: if there are no data or they cannot be read. Rejected crystals are not an error.
        OutputError: if the output folder cannot be used.
    """
    with new_folder(cfg.output, marker="summary.json", overwrite=cfg.overwrite) as folder:
        data: DataModule = instantiate(cfg.data)
        data.max_rejected = None  # rejected crystals are reported instead
        datasets = data.datasets()
        crystals, rejected = crystal_table(datasets), rejected_table(data.rejected())
        if crystals.empty and rejected.empty:
            raise DataError(f"{data.data_dir} contains no crystals")

        selected = _select(crystals["split"], cfg.max_crystals, cfg.seed)
        load = _Loader(list(datasets.values()))
        options = {"num_workers": cfg.num_workers, "timeout": cfg.timeout, "progress": True}
        analyses = analyze_crystals(load, np.flatnonzero(selected), symprec=cfg.symprec, **options)
        for name in ("space_group", "min_distance"):
            values = [None if x is None else getattr(x, name) for x in analyses]
            crystals.loc[selected, name] = values
        duplicates = find_duplicates(
            [key for dataset in datasets.values() for key in compositions(dataset)],
            crystals["split"].cat.codes.to_numpy(),
            load,
            selected=selected,
            settings=MatcherSettings(**cfg.tolerances),
            matcher=cfg.matcher,
            max_compared=cfg.max_compared,
            max_check=cfg.max_check,
            seed=cfg.seed,
            **options,
        )
        pairs = pair_table(crystals, duplicates, load)
        summary = {
            "data_dir": str(data.data_dir),
            "read_options": asdict(data.read_options),
            "splits": split_summaries(datasets, crystals, rejected),
            "rejected": counts_of(rejected["kind"]),
            "symprec": cfg.symprec,
            "duplicates": {
                "matcher": cfg.matcher,
                "tolerances": dict(cfg.tolerances),
                "max_compared": cfg.max_compared,
                **duplicate_summary(crystals["split"], selected, duplicates),
            },
        }
        summary["line"] = last_line(summary)
        write_json(folder / "summary.json", summary)
        pairs.to_csv(folder / "duplicates.csv", index=False)
        rejected.to_csv(folder / "rejected.csv", index=False)
        write_inspection(folder / "index.html", summary, crystals, pairs, rejected)
    console = Console()
    for table in summary_tables(summary, rejected):
        console.print(_rich_table(table))
    log.info("Wrote the page %s/index.html", cfg.output)
    console.print(summary["line"], markup=False, highlight=False, soft_wrap=True)
    return summary


class _Loader:
    """Loads structures by their index over all splits."""

    def __init__(self, datasets: Sequence[CrystalDataset]) -> None:
        self._datasets = datasets
        self._starts = np.cumsum([0, *map(len, datasets)])

    def __call__(self, indices: Indices) -> list[Structure]:
        found: dict[int, Structure] = {}
        split = np.searchsorted(self._starts, indices, side="right") - 1
        for i in np.unique(split):
            in_split = np.asarray(indices)[split == i]
            batch = self._datasets[i].batch(torch.from_numpy(in_split - self._starts[i]))
            found |= dict(zip(in_split.tolist(), batch.to_structure(), strict=True))
        return [found[int(index)] for index in indices]


def _rich_table(content: SummaryTable) -> Table:
    table = Table(title=escape(content.title), caption=escape(content.note))
    for i, name in enumerate(content.header):
        table.add_column(name, justify="left" if i in content.texts else "right")
    for row in content.rows:
        table.add_row(*map(escape, row))
    return table


def _select(splits: pd.Series, limit: int | None, seed: int) -> np.ndarray:
    """Draw at most `limit` crystals from each split to analyze and to search for duplicates."""
    selected = np.ones(len(splits), dtype=bool)
    rng = np.random.default_rng(seed)
    for indices in splits.groupby(splits, observed=True).indices.values():
        if limit is not None and len(indices) > limit:
            selected[rng.permutation(indices)[limit:]] = False
    return selected


def split_summaries(
    datasets: Mapping[str, CrystalDataset], crystals: pd.DataFrame, rejected: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """Summarize each split.

    Returns:
        For each split, `crystals` and `rejected` (0 if crystals were rejected before splitting);
        `figures`, with `summary_of` for each quantity and property; `crystal_systems` and
        `space_groups`, with counts, most frequent first; `elements`, with the number of crystals
        that contain each; and `elements_not_in_train`, the part of `elements` that is absent from
        train.
    """
    elements = {name: element_counts(dataset) for name, dataset in datasets.items()}
    train_elements = elements.get("train") or elements[next(iter(elements))]
    summaries = {}
    for name in datasets:
        part = crystals[crystals["split"] == name]
        summaries[name] = {
            "crystals": len(part),
            "rejected": int((rejected["split"] == name).sum()),
            "figures": {column: summary_of(part[column]) for column in quantity_names(crystals)},
            "crystal_systems": counts_of(crystal_systems(part["space_group"])),
            "space_groups": counts_of(part["space_group"]),
            "elements": elements[name],
            "elements_not_in_train": {
                symbol: num
                for symbol, num in elements[name].items()
                if symbol not in train_elements
            },
        }
    return summaries


def last_line(summary: Mapping[str, Any]) -> str:
    """Summarize rejected crystals and duplicates across splits in one line.

    Example: `412 of 5,000 rejected: 398 partial occupancy, 14 overlapping atoms. 37 crystals of
    test are in train.`
    """
    return f"{_rejected_sentence(summary)} {_leak_sentence(summary)}"


def _rejected_sentence(summary: Mapping[str, Any]) -> str:
    num_rejected = sum(summary["rejected"].values())
    total = num_rejected + sum(split["crystals"] for split in summary["splits"].values())
    if not num_rejected:
        return f"Nothing rejected of {total:,}."
    kinds = list(summary["rejected"].items())
    named = [f"{num:,} {kind}" for kind, num in kinds[:_MAX_KINDS]]
    if others := sum(num for _, num in kinds[_MAX_KINDS:]):
        named.append(f"{others:,} for other reasons")
    return f"{num_rejected:,} of {total:,} rejected: {', '.join(named)}."


def _leak_sentence(summary: Mapping[str, Any]) -> str:
    splits, duplicates = summary["splits"], summary["duplicates"]
    held_out = [name for name in splits if name != "train" and splits[name]["crystals"]]
    if not held_out or not splits.get("train", {}).get("crystals"):
        return "Train was not compared with val and test: one of the two sides has no crystals."
    found = {name: duplicates["found"][name]["train"] for name in held_out}
    asked = {name: duplicates["asked"][name] for name in held_out}
    are_all_compared = not duplicates["num_not_reduced"] and not any(
        duplicates[kind][name]["train"] for kind in ("cut_short", "unanswered") for name in held_out
    )
    are_drawn = any(asked[name] < splits[name]["crystals"] for name in held_out)
    leaks = [name for name, num in found.items() if num]
    if not (are_drawn or leaks):
        names = " or ".join(held_out)
        if are_all_compared:
            return f"No crystal of {names} is in train."
        return f"No crystal of {names} was found in train, but not all pairs were compared."
    if are_drawn:
        counts = [f"{found[n]:,} of {asked[n]:,} crystals drawn from {n}" for n in held_out]
    else:
        noun = "crystal" if found[leaks[0]] == 1 else "crystals"
        counts = [f"{found[name]:,} of {name}" for name in leaks]
        counts[0] = f"{found[leaks[0]]:,} {noun} of {leaks[0]}"
    subject, verb = " and ".join(counts), "is" if sum(found.values()) == 1 else "are"
    if are_all_compared:
        return f"{subject} {verb} in train."
    return f"At least {subject} {verb} in train (not all pairs were compared)."
