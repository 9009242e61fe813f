"""Evaluate files of crystals that were generated for given compositions."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from pymatgen.core import Composition, Structure
from rich.console import Console
from rich.table import Table

from src.commands.generated_tables import figure_text
from src.commands.references import (
    Reference,
    find_reference,
    name_of_input,
    read_crystals,
    samples_file,
)
from src.data.readers import DataError
from src.data.structures import NamedStructure, Skipped
from src.metrics.generation.parts import checksum, read_compared, write_compared
from src.metrics.generation.predicted_pairs import Sample, compare_part
from src.metrics.generation.prediction import Verdict, evaluate_prediction
from src.metrics.matching import AnyMatcher, MatcherSettings, open_matcher
from src.utils.errors import UserError
from src.utils.formulas import full_formula
from src.utils.output import new_folder, output_of
from src.utils.shards import shard_of
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)


def evaluate_csp(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate structure prediction as configured in `configs/eval_csp.yaml`.

    Writes these files to `cfg.output` (by default `eval_csp_NAME` next to the input):

    - `metrics.json`: the figures from `evaluate_prediction`, `num_skipped` (number of entries in
      the input that could not be read), and the paths of the input and the reference.
    - `per_crystal.csv`: for each reference crystal `id`, `formula` (of its cell), `num_atoms`,
      `num_samples`, `match_at_1`, `rms_at_1`, the same for k samples, with the suffix `_valid` if
      only valid samples count, `rms_of_all` (smallest with any sample that METRe looks at),
      `first_sample` (ID) and `reason` why it is not matched. `rms` is empty without a match.
    - `skipped.csv`: the entries that could not be read, with the reasons.

    With `cfg.shard`, only what takes long is done, for a part of the pairs; with `cfg.merge`, it is
    read from the folders of all parts.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: if the input, the reference, an option or the output folder cannot be used.
    """
    if cfg.shard is not None and cfg.merge is not None:
        raise UserError("set either shard=NUMBER/COUNT or merge=[FOLDER,FOLDER,...]")
    source = Path(cfg.input).expanduser().absolute()
    output = output_of(cfg, source.with_name(f"eval_csp_{name_of_input(source)}"))
    opened = open_matcher(cfg.matcher, cfg.num_workers, cfg.match_timeout)
    source = samples_file(source)
    if cfg.shard is not None:
        return _evaluate_shard(cfg, source, output, opened)
    with new_folder(output, marker="metrics.json", overwrite=cfg.overwrite) as folder, opened:
        samples, skipped = read_samples(source)
        reference, items = _read_reference(cfg)
        structures = [item.structure for item in items]
        compared = None
        if cfg.merge is not None:
            folders = [Path(each).expanduser() for each in cfg.merge]
            compared = read_compared(folders, _settings_of_parts(cfg, samples, structures))
        metrics, verdicts = evaluate_prediction(
            samples,
            structures,
            opened,
            **_options(cfg),
            seed=cfg.seed,
            compared=compared,
            progress=True,
        )
        metrics |= {
            "num_skipped": len(skipped),
            "input": str(source),
            "reference": str(reference),
        }
        write_json(folder / "metrics.json", metrics)
        rows = _rows(items, samples, verdicts, metrics["k"])
        rows.to_csv(folder / "per_crystal.csv", index=False, float_format="%.6g")
        pd.DataFrame(skipped, columns=["file", "reason"]).to_csv(
            folder / "skipped.csv", index=False
        )
    console = Console()
    console.print(metrics_table(metrics))
    console.print(sizes_table(metrics))
    log.info("The results are in %s", output)
    return metrics


def _evaluate_shard(
    cfg: DictConfig, source: Path, output: Path, opened: AnyMatcher
) -> dict[str, Any]:
    """Do the part of the comparisons that `cfg.shard` names, for a later call with `merge`.

    Writes `part.json` and `part.safetensors` to `output` with the number of the part appended, see
    `write_compared`.

    Returns:
        What the part was computed with.
    """
    samples, _ = read_samples(source)
    structures = [item.structure for item in _read_reference(cfg)[1]]
    _, shard = shard_of(cfg.shard, len(samples))
    assert shard is not None
    number, count = map(int, shard.split("/"))
    output = output.with_name(f"{output.name}_{shard.replace('/', '_of_')}")
    settings = _settings_of_parts(cfg, samples, structures)
    with new_folder(output, marker="part.json", overwrite=cfg.overwrite) as folder, opened:
        compared = compare_part(
            samples, structures, opened, number=number, count=count, **_options(cfg), progress=True
        )
        write_compared(folder, compared, number, count, settings)
    log.info("Part %s is in %s; merge=[...] joins all parts", shard, output)
    return settings


def _read_reference(cfg: DictConfig) -> tuple[Reference, list[NamedStructure]]:
    reference = find_reference(
        cfg.reference, cfg.reference_split, "reference_split", cfg.split_file
    )
    return reference, reference.crystals(read_crystals)


def _options(cfg: DictConfig) -> dict[str, Any]:
    """What is compared, as arguments of `evaluate_prediction`."""
    settings = MatcherSettings(**cfg.tolerances)
    return {"k": cfg.k, "polymorphs": cfg.polymorphs, "settings": settings}


def _settings_of_parts(
    cfg: DictConfig, samples: Sequence[Sample], structures: Sequence[Structure]
) -> dict[str, Any]:
    """What the results of a part depend on, with checksums in place of crystals."""
    built = [sample.structure for sample in samples if sample.structure is not None]
    names = "\n".join(
        f"{sample.id} {full_formula(sample.composition)} {sample.structure is not None}"
        for sample in samples
    )
    return {
        "input": checksum(built),
        "samples": hashlib.sha256(names.encode()).hexdigest(),
        "reference": checksum(structures),
        "k": cfg.k,
        "polymorphs": cfg.polymorphs,
        "matcher": cfg.matcher,
        "match_timeout": cfg.match_timeout,
        "tolerances": dict(cfg.tolerances),
    }


def read_samples(path: Path) -> tuple[list[Sample], list[Skipped]]:
    """Read samples in the order in which they were generated.

    Args:
        path: any path that `read_crystals` reads. If there is a `samples.json` beside a
            `samples.extxyz`, the samples that it lists as not written are included, without a
            structure, so that they count as not matched.

    Returns:
        The samples, and the entries that could not be read.

    Raises:
        DataError: as `read_crystals`, or if `samples.json` is damaged.
    """
    items, skipped = read_crystals(path)
    read = {item.id: Sample(item.id, item.structure.composition, item.structure) for item in items}
    listed = path.with_name("samples.json")
    if path.name != "samples.extxyz" or not listed.is_file():
        return [Sample(i.id, i.structure.composition, i.structure) for i in items], skipped
    try:
        rows = json.loads(listed.read_text(encoding="utf-8"))["samples"]
        return [
            read.get(row["id"]) or Sample(row["id"], Composition(row["formula"]), None)
            for row in rows
        ], skipped
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{listed} does not list samples as sample_ldm does ({error!r}): sample again, or give "
            f"a copy of {path.name} in another folder as input"
        ) from error


def metrics_table(metrics: dict[str, Any]) -> Table:
    """The figures for the terminal."""
    tolerances = metrics["tolerances"]
    counted = "formulas" if metrics["polymorphs"] == "once" else "crystals"
    table = Table(
        title=f"{metrics['num_samples']:,} samples for {metrics['num_counted']:,} {counted}",
        caption=f"reference: {metrics['reference']}; matcher: {metrics['matcher']}, "
        f"stol {tolerances['stol']}, ltol {tolerances['ltol']}, angle {tolerances['angle_tol']}°; "
        "±: 95 % interval of a bootstrap over crystals",
    )
    table.add_column("metric")
    table.add_column("all samples", justify="right")
    table.add_column("valid samples only", justify="right")
    k = metrics["k"]
    for count in dict.fromkeys((1, k)):
        of = "the first sample" if count == 1 else f"the best of {count} samples"
        for name, text, share in (
            ("match", f"match rate, {of}", True),
            ("rmse", "  RMSE of matched crystals", False),
            ("crmse", "  cRMSE, unmatched count as stol", False),
        ):
            keys = (f"{name}_at_{count}", f"{name}_at_{count}_valid")
            table.add_row(text, *(figure_text(metrics, key, share) for key in keys))
    table.add_row("METRe", figure_text(metrics, "metre", True), "")
    table.add_row("  its cRMSE", figure_text(metrics, "metre_crmse", False), "")
    table.add_section()
    for name, text in (
        ("valid_structure", "samples with a valid structure"),
        ("valid_composition", "samples with a valid composition"),
    ):
        table.add_row(text, figure_text(metrics, name, True), "")
    for name, text in (
        ("num_without_sample", "without a sample, counted as not matched"),
        ("num_with_fewer", f"with fewer than {k} samples"),
        ("num_unassigned", "samples of other compositions, left out"),
        ("num_not_built", "samples without a structure, counted as no match"),
        ("match_timeouts", "pairs without a result, counted as no match"),
        ("num_skipped", "unreadable entries in the input, not counted"),
    ):
        table.add_row(text, f"{metrics[name]:,}", "")
    return table


def sizes_table(metrics: dict[str, Any]) -> Table:
    """Match rate and RMSE by number of atoms, for the terminal."""
    table = Table(title="by number of atoms in the cell")
    counts = list(dict.fromkeys((1, metrics["k"])))
    heads = [f"{name}@{count}" for count in counts for name in ("match", "RMSE")]
    for name in ("atoms", "crystals", *heads):
        table.add_column(name, justify="right")
    for row in metrics["by_num_atoms"]:
        figures = [
            figure_text(row, f"{name}_at_{count}", name == "match")
            for count in counts
            for name in ("match", "rmse")
        ]
        table.add_row(str(row["num_atoms"]), f"{row['crystals']:,}", *figures)
    return table


def _rows(
    items: Sequence[NamedStructure], samples: Sequence[Sample], verdicts: Sequence[Verdict], k: int
) -> pd.DataFrame:
    """The content of `per_crystal.csv`."""
    rows = []
    for item, verdict in zip(items, verdicts, strict=True):
        row: dict[str, Any] = {
            "id": item.id,
            "formula": full_formula(item.structure.composition).replace(" ", ""),
            "num_atoms": len(item.structure),
            "num_samples": len(verdict.samples),
        }
        for count in dict.fromkeys((1, k)):
            for suffix, only_valid in (("", False), ("_valid", True)):
                best = verdict.best(count, only_valid)
                row[f"match_at_{count}{suffix}"] = math.isfinite(best)
                row[f"rms_at_{count}{suffix}"] = best if math.isfinite(best) else None
        best_of_all = verdict.best_of_all
        found = best_of_all is not None and math.isfinite(best_of_all)
        row["rms_of_all"] = best_of_all if found else None
        row["first_sample"] = samples[verdict.samples[0]].id if verdict.samples else None
        row["reason"] = _reason(verdict, k)
        rows.append(row)
    return pd.DataFrame(rows)


def _reason(verdict: Verdict, k: int) -> str:
    if not verdict.samples:
        return "no sample of this composition"
    return "" if math.isfinite(verdict.best(k)) else "no match within the tolerances"
