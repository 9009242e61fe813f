"""Tables of the evaluation of generated crystals, for the terminal and for files."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from src.data.structures import NamedStructure
from src.metrics.generation.fingerprint_distances import AMD_DISTANCES
from src.metrics.generation.intervals import half_width, interval_name
from src.metrics.generation.verdicts import Verdict
from src.utils.formulas import reduced_formula


def metrics_table(metrics: dict[str, Any]) -> Table:
    """A table of the metrics for the terminal."""
    latents = ""
    if "encoder" in metrics:
        latents = (
            f"energy distance of latents: of {metrics['latent_sample_size']:,} crystals of each "
            f"set, encoded by {metrics['encoder']}; "
        )
    table = Table(
        title=f"{metrics['num_generated']:,} generated crystals",
        caption=f"novel: matches none of the {metrics['num_reference']:,} crystals in "
        f"{metrics['reference']}; coverage and distances: compared with "
        f"{metrics['num_test_reference']:,} crystals in {metrics['test_reference']}, of which the "
        f"last column has the same figures, and distances of {metrics['floor_size']:,} crystals of "
        f"the former from them; {latents}±: 95 % interval of a bootstrap over crystals",
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("real crystals", justify="right")
    for row in table_rows(metrics):
        table.add_row(*row)
    return table


def table_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """For each figure, its description, its value, and that of real crystals, if there is one.

    Figures that were not asked for are left out.
    """
    tolerances, cutoffs = metrics["tolerances"], metrics["cutoffs"]
    settings = (
        f"matcher: {metrics['matcher']}, stol {tolerances['stol']}, ltol {tolerances['ltol']}, "
        f"angle {tolerances['angle_tol']}°"
    )
    cutoffs_used = f"structure {cutoffs['structure']}, composition {cutoffs['composition']}"
    rows = [
        ("valid structure (0.5 Å, 0.1 Å^3)", "valid_structure", "%"),
        ("  atoms closer than 0.7 times their covalent radii", "too_close", "%"),
        ("  an isolated atom, none within 1.5 times the radii", "isolated", "%"),
        ("  density outside that of the test reference", "density_outside", "%"),
        ("  volume per atom outside that", "volume_per_atom_outside", "%"),
        ("valid composition (SMACT, CDVAE's options)", "valid_composition", "%"),
        (f"  by the defaults of smact {metrics['smact_version']}", "valid_composition_smact", "%"),
        ("valid structure and composition", "valid", "%"),
        (f"unique, among valid structures ({settings})", "unique", "%"),
        ("  groups of matching crystals, in any order", "unique_groups", "%"),
        ("novel, among valid structures", "novel", "%"),
        ("  of a new composition", "novel_composition", "%"),
        ("  of a known composition, with a new structure", "novel_structure", "%"),
        ("  of a new prototype, whatever the elements", "novel_prototype", "%"),
        ("unique and novel, among valid structures", "unique_and_novel", "%"),
        ("valid, unique and novel, among all", "valid_unique_and_novel", "%"),
        (f"coverage, recall (cutoffs: {cutoffs_used})", "cov_recall", "%"),
        ("coverage, precision", "cov_precision", "%"),
        ("Wasserstein distance of density", "wdist_density", " g/cm^3"),
        ("  of the number of elements", "wdist_num_elements", ""),
        ("  of the number of atoms", "wdist_num_atoms", ""),
        ("  of the volume per atom", "wdist_volume_per_atom", " Å^3"),
        ("  of the lengths of the Niggli cell", "wdist_lengths", " Å"),
        ("  of its angles", "wdist_angles", "°"),
        ("total variation distance of space groups", "tvd_space_groups", ""),
        ("  of elements", "tvd_elements", ""),
        ("AMD distance to the nearest reference crystal", "amd_precision", " Å"),
        ("AMD distance from reference crystals to the nearest crystal", "amd_recall", " Å"),
        ("AMD distance between crystals", "amd_diversity", " Å"),
        ("pairs without a result, counted as no match", "match_timeouts", "n"),
        ("crystals without a fingerprint, counted as invalid", "fingerprint_failures", "n"),
        ("unreadable entries in the input, not counted", "num_skipped", "n"),
        ("samples that were not written, not counted", "num_not_written", "n"),
    ]
    real = metrics | {f"{key}_reference": value for key, value in (metrics["floor"] or {}).items()}
    if "encoder" in metrics:
        rows[-4:-4] = [
            ("energy distance of latents", "latent_energy_distance", ""),
            ("  p-value, if both sets are of one distribution", "latent_p_value", ""),
        ]
        for key in ("latent_energy_distance", "latent_p_value"):
            real[f"{key}_reference"] = metrics[f"{key}_held_out"]
    left_out = _not_asked_for(metrics)
    return [
        (name, _format(metrics, key, unit), _format(real, f"{key}_reference", unit))
        for name, key, unit in rows
        if key not in left_out
    ]


def _not_asked_for(metrics: dict[str, Any]) -> set[str]:
    """The figures that are None because of `fingerprints=false` or `prototypes=false`."""
    names = set()
    if metrics["fingerprint_failures"] is None:
        names |= {"fingerprint_failures", "cov_recall", "cov_precision", *AMD_DISTANCES}
    if metrics["novel_prototype"] is None and metrics["novel"] is not None:
        names.add("novel_prototype")
    return names


def _format(metrics: dict[str, Any], key: str, unit: str) -> str:
    """A figure; nothing if there is none of that name."""
    if key not in metrics:
        return ""
    if unit in ("%", ""):
        return figure_text(metrics, key, unit == "%")
    value = metrics[key]
    if value is None:
        return "none"
    return f"{value:,}" if unit == "n" else f"{value:.4f}{unit}"


def figure_text(metrics: dict[str, Any], name: str, is_share: bool) -> str:
    """A figure with half the width of its interval, if it has one: `61.39 ± 1.00 %`."""
    value, half = metrics[name], half_width(metrics.get(interval_name(name)))
    if value is None:
        return "none"
    factor, digits, unit = (100, 2, " %") if is_share else (1, 4, "")
    spread = "" if half is None else f" ± {factor * half:.{digits}f}"
    return f"{factor * value:.{digits}f}{spread}{unit}"


def per_crystal(
    items: Sequence[NamedStructure],
    verdicts: Sequence[Verdict],
    reference: Sequence[NamedStructure],
) -> pd.DataFrame:
    """The content of `per_crystal.csv`."""
    rows = []
    for item, verdict in zip(items, verdicts, strict=True):
        is_compared = verdict.valid_structure
        duplicate_of, known_as = verdict.duplicate_of, verdict.known_as
        rows.append(
            {
                "id": item.id,
                "formula": reduced_formula(item.structure.composition),
                "num_atoms": len(item.structure),
                "valid_structure": verdict.valid_structure,
                "valid_composition": verdict.valid_composition,
                "unique": verdict.unique if is_compared else None,
                "duplicate_of": None if duplicate_of is None else items[duplicate_of].id,
                "novel": verdict.novel if is_compared else None,
                "known_as": None if known_as is None else reference[known_as].id,
                "known_composition": verdict.known_composition,
                "known_prototype": verdict.known_prototype,
                "reason": verdict.reason,
            }
        )
    return pd.DataFrame(rows)
