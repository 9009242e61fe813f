"""Compare evaluations of generated crystals."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.data.readers import DataError
from src.metrics.generation.comparison import Row, Run, compare, differing_settings, read_run
from src.metrics.generation.intervals import half_width
from src.report.comparison import write_comparison
from src.utils.config import to_plain
from src.utils.errors import UserError
from src.utils.output import new_folder, output_of

log = logging.getLogger(__name__)


def compare_files(cfg: DictConfig) -> list[Row]:
    """Compare results as configured in `configs/compare_generated.yaml`.

    Prints a table and writes these files to `cfg.output` (by default `compare_generated` next to
    the first input):

    - `compare.html`: the table as a page that works offline.
    - `compare.csv`: for each figure, `figure`, the value of each run, `NAME_low` and `NAME_high`
      of its interval, `best` (names of runs) and `settings_that_differ`.

    Returns:
        The rows of the table.

    Raises:
        UserError: if there are fewer than two inputs, if one has no readable `metrics.json`, or if
            the output folder cannot be used.
    """
    given = to_plain(cfg.inputs)
    inputs = [Path(each).expanduser().absolute() for each in given] if _is_list(given) else []
    if len(inputs) < 2:
        raise UserError(f"inputs={given} is not several folders: write inputs=[FOLDER,FOLDER]")
    runs = [_read(path, name) for path, name in zip(inputs, _names(inputs), strict=True)]
    rows, differing = compare(runs), differing_settings(runs)
    output = output_of(cfg, inputs[0].with_name("compare_generated"))
    with new_folder(output, marker="compare.csv", overwrite=cfg.overwrite) as folder:
        _csv_table(rows, runs).to_csv(folder / "compare.csv", index=False)
        names = [run.name for run in runs]
        write_comparison(folder / "compare.html", names, rows, differing)
    console = Console()
    console.print(comparison_table(rows, runs))
    if differing:
        console.print(_settings_table(differing, runs))
    log.info("The comparison is in %s", output)
    return rows


def comparison_table(rows: Sequence[Row], runs: Sequence[Run]) -> Table:
    """The figures for the terminal, the best of each in bold."""
    table = Table(
        caption="bold: best; ±: 95 % interval of a bootstrap over crystals, within which "
        "a difference may be chance; †: depends on settings that differ, not compared"
    )
    table.add_column("figure")
    for run in runs:
        table.add_column(Text(run.name), justify="right")
    for row in rows:
        texts = [
            Text(_text(row, i), style="bold" if i in row.best else "") for i in range(len(runs))
        ]
        table.add_row(row.figure + (" †" if row.differing else ""), *texts)
    return table


def _settings_table(differing: dict[str, list[Any]], runs: Sequence[Run]) -> Table:
    table = Table(title="settings that differ")
    table.add_column("setting")
    for run in runs:
        table.add_column(Text(run.name))
    for name, values in differing.items():
        table.add_row(name, *(Text("–" if value is None else str(value)) for value in values))
    return table


def _csv_table(rows: Sequence[Row], runs: Sequence[Run]) -> pd.DataFrame:
    names = [run.name for run in runs]
    lines = []
    for row in rows:
        line: dict[str, Any] = {"figure": row.figure}
        for name, value, interval in zip(names, row.values, row.intervals, strict=True):
            low, high = interval or (None, None)
            line |= {name: value, f"{name}_low": low, f"{name}_high": high}
        line["best"] = " ".join(names[i] for i in row.best)
        line["settings_that_differ"] = " ".join(row.differing)
        lines.append(line)
    return pd.DataFrame(lines)


def _text(row: Row, i: int) -> str:
    value, half = row.values[i], half_width(row.intervals[i])
    if value is None:
        return "–"
    if isinstance(value, int) and not row.is_share:
        return f"{value:,}"
    factor, digits, unit = (100, 2, " %") if row.is_share else (1, 4, "")
    spread = "" if half is None else f" ± {factor * half:.{digits}f}"
    return f"{factor * value:.{digits}f}{spread}{unit}"


def _read(path: Path, name: str) -> Run:
    file = path / "metrics.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} has no metrics.json: give a folder that eval_generated, eval_csp or "
            "eval_stability wrote"
        ) from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON ({error}): evaluate again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is not the metrics.json of an evaluation: evaluate again")
    return read_run(name, content)


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; with those of the folders above them where they are the same."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"inputs has {paths[0]} or another folder twice: give each once")


def _is_list(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(each, str) for each in given)
