"""Figures of how stable crystals are, from the results of `evaluate_stability`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import pandas as pd
from omegaconf import DictConfig
from pymatgen.core import Composition
from rich.console import Console
from rich.table import Table

from src.commands.generated_tables import figure_text
from src.commands.references import find_reference, read_crystals
from src.data.structures import to_atoms, to_crystal
from src.metrics.generation.intervals import interval_name
from src.metrics.generation.stability.elements import simple_structures
from src.metrics.generation.stability.energies import Relaxation, from_lists
from src.metrics.generation.stability.figures import (
    energy_figures,
    failures,
    hull_figures,
    relaxation_figures,
    state_name,
    symmetry_figures,
)
from src.metrics.generation.stability.hull import Entry, Hull, read_phase_diagram, system_of
from src.metrics.generation.stability.potentials import Potential
from src.metrics.generation.stability.reference import EnergyCache, energies_of
from src.metrics.generation.stability.results import Results, Row, read_results, read_settings
from src.utils.errors import UserError
from src.utils.formulas import full_formula
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)

METRICS = "metrics.json"
PER_CRYSTAL = "per_crystal.csv"
RELAXED = "relaxed.extxyz"
_MAX_NAMED = 5  # crystals that a message names for each reason


def check_sources(cfg: DictConfig) -> None:
    """Look for what the figures need, before hours are spent on the crystals.

    Raises:
        UserError: if the reference, the phase diagram or `judged` cannot be used.
    """
    if cfg.phase_diagram is not None and cfg.reference is not None:
        raise UserError("set either reference or phase_diagram: a hull has one source")
    if cfg.elements not in (None, "simple"):
        raise UserError(f"elements must be null or simple, not {cfg.elements!r}")
    if cfg.judged is not None:
        if not (cfg.reference or cfg.phase_diagram or cfg.elements):
            raise UserError("judged counts stable crystals: set reference or phase_diagram as well")
        _read_judged(Path(cfg.judged).expanduser())
    if cfg.phase_diagram is not None:
        read_phase_diagram(cfg.phase_diagram)
    if cfg.reference is not None:
        if not Path(cfg.reference).expanduser().exists():
            raise UserError(f"there is no file or folder reference={cfg.reference}")
        find_reference(cfg.reference, cfg.reference_split, "reference_split")


def write_figures(cfg: DictConfig, folder: Path, potential: Potential) -> dict[str, Any]:
    """Write `metrics.json` and `per_crystal.csv` from the results in a folder, and show them."""
    settings = read_settings(folder)
    if (settings["potential"], settings["potential_version"]) != (
        potential.name,
        potential.version,
    ):
        raise UserError(
            f"{folder} was judged by {settings['potential']} ({settings['potential_version']}): "
            f"set potential={settings['potential']}"
        )
    results = read_results(folder)
    before = [row for (state, _), row in sorted(results.items()) if state == "as_generated"]
    after = _relaxed_rows(settings, results, before)
    symmetrized = settings["symmetrize"] is not None
    metrics: dict[str, Any] = {
        "num_crystals": len(before),
        "potential": f"{potential.title} ({potential.version})",
        **{k: settings[k] for k in ("shard", "symmetrize", "noise", "relaxation")},
    }
    if symmetrized:
        changes = [row["symmetrized"] for row in before if "symmetrized" in row]
        metrics |= symmetry_figures([each["displacement"] for each in changes if each["gained"]])
    hull, of_hull = _hull(cfg, [row for row in before if "failed" not in row], potential)
    sun = None if cfg.judged is None else _sun(Path(cfg.judged).expanduser(), before, settings)
    columns: dict[str, list[float | None]] = {}
    for state, rows in (("as_generated", before), ("relaxed", after)):
        if rows is None:
            continue
        name = state_name(state, symmetrized)
        metrics |= energy_figures(rows, potential, name)
        if state == "relaxed":
            metrics |= relaxation_figures(before, rows, potential, name)
        if hull is not None:
            above = [_above(hull, row) for row in rows]
            columns["e_above_hull" + ("_relaxed" if state == "relaxed" else "")] = above
            metrics |= hull_figures(above, potential, name, sun)
    metrics |= of_hull
    write_json(folder / METRICS, metrics)
    _table_of(before, after, columns).to_csv(folder / PER_CRYSTAL, index=False)
    if after is not None:
        _write_relaxed(folder / RELAXED, after)
    for reason, ids in failures(after or before).items():
        more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
        log.warning("Failed: %s%s: %s", ", ".join(ids[:_MAX_NAMED]), more, reason)
    Console().print(metrics_table(metrics))
    log.info("The results are in %s", folder)
    return metrics


def _relaxed_rows(
    settings: dict[str, Any], results: Results, before: Sequence[Row]
) -> list[Row] | None:
    """The rows of relaxed crystals, those that failed before included; None if there are none."""
    if settings["relaxation"] is None:
        return None
    rows = [
        {**row, "state": "relaxed"} if "failed" in row else results.get(("relaxed", row["index"]))
        for row in before
    ]
    found = [row for row in rows if row is not None]
    if missing := len(rows) - len(found):
        log.warning("%d crystals are not relaxed yet: go on with relax=true", missing)
        return None
    return found


def _above(hull: Hull, row: Row) -> float | None:
    if "failed" in row:
        return math.inf
    return hull.above(Composition(row["formula"]), row["energy"])


def _hull(
    cfg: DictConfig, rows: Sequence[Row], potential: Potential
) -> tuple[Hull | None, dict[str, Any]]:
    """The hull that the crystals need, and what `metrics.json` says of it."""
    if cfg.phase_diagram is not None:
        path = Path(cfg.phase_diagram).expanduser()
        known = read_phase_diagram(path)
        return Hull(known), {"hull": {"phase_diagram": str(path), "num_entries": len(known)}}
    if cfg.reference is None and cfg.elements is None:
        return None, {}
    systems = {system_of(Composition(row["formula"])) for row in rows}
    entries: list[Entry] = []
    about: dict[str, Any] = {}
    if cfg.reference is not None:
        entries, about = _reference_entries(cfg, systems, potential)
    if cfg.elements == "simple":
        simple, failed = _simple_entries(cfg, set().union(*systems), potential)
        used = sorted({entry.formula for entry in simple} - Hull(entries).elements)
        about |= {"elements": "simple", "simple_elements": used, "num_simple_failed": failed}
        entries = [*entries, *simple]
    missing = sorted(set().union(*systems) - Hull(entries).elements)
    if missing:
        log.warning(
            "The reference has no crystal of %s: the energy above the hull is unknown for crystals "
            "with these elements%s",
            ", ".join(missing), "" if cfg.elements else " (see the option elements)",
        )  # fmt: skip
    about |= {"num_entries": len(entries), "missing_elements": missing}
    return Hull(entries), {"hull": about}


def _reference_entries(
    cfg: DictConfig, systems: set[frozenset[str]], potential: Potential
) -> tuple[list[Entry], dict[str, Any]]:
    reference = find_reference(cfg.reference, cfg.reference_split, "reference_split")
    items = [
        (item, full_formula(item.structure.composition))
        for item in reference.crystals(read_crystals)
        if _is_within(system_of(item.structure.composition), systems)
    ]
    relaxation = Relaxation(cfg.fmax, cfg.max_steps) if cfg.relax_reference else None
    cache = EnergyCache(Path(cfg.cache_dir).expanduser(), potential, relaxation)
    crystals = [to_crystal(item.structure) for item, _ in items]
    energies = energies_of(crystals, cache, cfg.num_workers, cfg.time_limit)
    entries = [
        Entry(formula, energy, item.id)
        for (item, formula), energy in zip(items, energies, strict=True)
        if not isinstance(energy, str)
    ]
    if failed := len(items) - len(entries):
        log.warning("%d reference crystals failed and are not in the hull", failed)
    return entries, {
        "reference": str(reference),
        "reference_relaxed": bool(cfg.relax_reference),
        "num_reference_failed": failed,
    }


def _is_within(system: frozenset[str], systems: set[frozenset[str]]) -> bool:
    return system in systems or any(system <= other for other in systems)


def _simple_entries(
    cfg: DictConfig, elements: set[str], potential: Potential
) -> tuple[list[Entry], int]:
    """Simple structures of the elements, relaxed, and how many of them failed."""
    named = [
        (symbol, name, crystal)
        for symbol in sorted(elements)
        for name, crystal in simple_structures(symbol).items()
    ]
    cache = EnergyCache(
        Path(cfg.cache_dir).expanduser(), potential, Relaxation(cfg.fmax, cfg.max_steps)
    )
    crystals = [crystal for _, _, crystal in named]
    energies = energies_of(
        crystals, cache, cfg.num_workers, cfg.time_limit, "simple structures of elements"
    )
    entries = [
        Entry(symbol, energy, f"simple: {name}")
        for (symbol, name, _), energy in zip(named, energies, strict=True)
        if not isinstance(energy, str)
    ]
    return entries, len(named) - len(entries)


def _read_judged(folder: Path) -> tuple[Path, pd.DataFrame]:
    """The table that `eval_generated` wrote to a folder, and its path."""
    path = folder / PER_CRYSTAL
    if not path.is_file():
        raise UserError(f"judged={folder} has no {PER_CRYSTAL}: name a folder of eval_generated")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not {"id", "unique", "novel"} <= set(table.columns):
        raise UserError(f"{path} has no columns id, unique and novel: is it of eval_generated?")
    return path, table


def _sun(folder: Path, rows: Sequence[Row], settings: dict[str, Any]) -> list[bool]:
    """Whether each crystal is unique and novel, by the results of `eval_generated`."""
    path, table = _read_judged(folder)
    if settings["noise"] is not None:
        raise UserError("judged is for crystals as they are: it cannot be used with noise")
    ids = table["id"].tolist()
    flags = ((table["unique"] == "True") & (table["novel"] == "True")).tolist()
    found = []
    for row in rows:
        index = row["index"]
        if index >= settings["num_readable"]:
            found.append(False)
        elif index >= len(ids) or ids[index] != row["id"]:
            there = ids[index] if index < len(ids) else "nothing"
            raise UserError(
                f"{path}, row {index + 1} is of {there}, not of {row['id']}: run eval_generated "
                "on the same input"
            )
        else:
            found.append(flags[index])
    return found


def metrics_table(metrics: dict[str, Any]) -> Table:
    """A table of the figures for the terminal."""
    table = Table(
        title=f"{metrics['num_crystals']:,} crystals, {metrics['potential']}",
        caption="±: 95 % interval of a bootstrap over crystals",
    )
    table.add_column("figure", overflow="fold")  # the names say what the figures depend on
    table.add_column("value, or median (10 % to 90 %)", justify="right")
    for name, value in metrics.items():
        if isinstance(value, dict) and "0.5" in value:
            low, middle, high = (_number(value[key]) for key in ("0.1", "0.5", "0.9"))
            table.add_row(name, f"{middle} ({low} to {high})")
        elif interval_name(name) in metrics:
            table.add_row(name, figure_text(metrics, name, is_share=True))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    return table


def _number(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.3f}" if math.isfinite(value) else "failed"


def _table_of(
    before: Sequence[Row], after: Sequence[Row] | None, columns: dict[str, list[float | None]]
) -> pd.DataFrame:
    """The content of `per_crystal.csv`."""
    table = pd.DataFrame(
        {
            "id": [row["id"] for row in before],
            "formula": [row["formula"] for row in before],
            "num_atoms": [row["num_atoms"] for row in before],
            "energy": [row.get("energy") for row in before],
            "force": [row.get("force") for row in before],
        }
    )
    if after is not None:
        table["energy_relaxed"] = [row.get("energy") for row in after]
        for name in ("converged", "matches", "rmsd", "volume_change"):
            table[name] = [row.get(name) for row in after]
    for name, values in columns.items():
        table[name] = [v if v is not None and math.isfinite(v) else None for v in values]
    table["reason"] = [row.get("failed", "") for row in after or before]
    return table


def _write_relaxed(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            if "crystal" in row:
                ase.io.write(file, to_atoms(from_lists(row["crystal"]), row["id"]), format="extxyz")
