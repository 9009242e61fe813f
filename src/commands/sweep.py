"""The results of a sweep: a table and a plot of its jobs, read from their folders.

Hydra multiruns, the searches in `src.commands.search` and cluster job arrays all leave one folder
per job, with `.hydra/overrides.yaml`, `summary.json` if the job finished, and `status.json` if the
reason why it did not is known.
"""

import atexit
import contextlib
import json
import logging
import math
import multiprocessing
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from src.utils.errors import UserError
from src.utils.output import new_file
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)

FIGURES = ("match_rate", "rmse", "best_val_loss", "time_s")  # shown on the terminal
STATUS_FILE = "status.json"


class SweepError(UserError):
    """A folder that does not belong to a sweep; the message says why."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        name: the name of its folder.
        overrides: numbers are parsed, other values are kept as written.
        status: `done`, `failed`, `pruned`, or `missing` (running, killed, or never started).
        message: the reason for the status, if known.
        summary: the content of `summary.json`.
    """

    name: str
    overrides: dict[str, Any]
    status: str
    message: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


def report_sweep(
    folder: str | Path, objective: str, importances: Mapping[str, float] | None = None
) -> list[Job]:
    """Write `sweep.csv` and `sweep.png` into the folder of a sweep, and print its table.

    Args:
        folder: the folder of the sweep.
        objective: the metric in `summary.json` to plot.
        importances: importances of the overrides to show in the plot, if known.

    Returns:
        The jobs, in order.

    Raises:
        SweepError: if there is no job in the folder.
    """
    folder = Path(folder)
    jobs = read_jobs(folder)
    with new_file(folder / "sweep.csv", overwrite=True) as path:
        to_frame(jobs).to_csv(path, index=False)
    with new_file(folder / "sweep.png", overwrite=True) as path:
        plot_sweep(jobs, objective, path, importances)
    Console().print(sweep_table(jobs, objective))
    log.info("Wrote sweep.csv and sweep.png to %s", folder)
    return jobs


def read_jobs(folder: Path) -> list[Job]:
    """The jobs whose folders are in `folder`, in order.

    Raises:
        SweepError: if there is none.
    """
    found = [path.parents[1] for path in folder.glob("*/.hydra/overrides.yaml")]
    if not found:
        raise SweepError(f"{folder} is not a sweep folder: it contains no */.hydra/overrides.yaml")
    return [_read_job(path) for path in sorted(found, key=lambda p: (len(p.name), p.name))]


def _read_job(folder: Path) -> Job:
    lines = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
    overrides = _parse([str(line) for line in lines])
    summary = _read_json(folder / "summary.json")
    ended = _read_json(folder / STATUS_FILE) or {"status": "done" if summary else "missing"}
    return Job(folder.name, overrides, ended["status"], ended.get("message", ""), summary)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _parse(lines: list[str]) -> dict[str, Any]:
    parsed = OverridesParser.create().parse_overrides(lines)
    return {
        override.key_or_group: value
        if _is_number(value := override.value())
        else override.get_value_element_as_str()
        for override in parsed
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_status(
    folder: Path, status: str, message: str, error: BaseException | None = None
) -> None:
    """Record in a job's folder why it has no result."""
    content = {"status": status, "message": " ".join(message.split())}
    if error is not None:
        content["traceback"] = "".join(traceback.format_exception(error))
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / STATUS_FILE, overwrite=True) as path:
        write_json(path, content)


def swept(jobs: Sequence[Job]) -> list[str]:
    """The overrides that differ between jobs; only the first of those that change together."""
    values: dict[tuple[str, ...], str] = {}
    for name in dict.fromkeys(name for job in jobs for name in job.overrides):
        values.setdefault(tuple(str(job.overrides.get(name)) for job in jobs), name)
    return [name for column, name in values.items() if len(set(column)) > 1]


def to_frame(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per job: its name, status, message, overrides, and the metrics of its summary."""
    rows = [
        {
            "job": job.name,
            "status": job.status,
            "message": job.message,
            **job.overrides,
            **{name: value for name, value in job.summary.items() if name not in job.overrides},
        }
        for job in jobs
    ]
    return pd.DataFrame(rows)


def sweep_table(jobs: Sequence[Job], objective: str) -> Table:
    """The overrides that differ between jobs, and their results, for the terminal."""
    parameters = swept(jobs)
    figures = list(dict.fromkeys([objective, *FIGURES]))
    done = sum(job.status == "done" for job in jobs)
    messages = [f"{job.name}: {job.message}" for job in jobs if job.message]
    table = Table(
        title=f"{done} of {len(jobs)} jobs are done",
        caption=escape("\n".join(messages)) or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("job", overflow="fold")
    last = [name.rpartition(".")[2] for name in parameters]
    for name, short in zip(parameters, last, strict=True):
        header = short if last.count(short) == 1 else name
        table.add_column(header, justify="right", overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("status", no_wrap=True)
    for job in jobs:
        cells = [
            job.name,
            *(_format(job.overrides.get(name)) for name in parameters),
            *(_format(job.summary.get(name)) for name in figures),
            job.status,
        ]
        style = {"failed": "red", "missing": "yellow", "pruned": "dim"}.get(job.status)
        table.add_row(*map(escape, cells), style=style)
    return table


def _format(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot_sweep(
    jobs: Sequence[Job],
    objective: str,
    path: Path,
    importances: Mapping[str, float] | None = None,
) -> None:
    """Plot the objective against each swept parameter, one panel each.

    A line joins the medians if a parameter has repeated values or is the only parameter. An axis
    whose values span a factor of ten or more is logarithmic. Jobs without a result are crosses on
    the axis.
    """
    from matplotlib.figure import Figure

    parameters = swept(jobs) or ["job"]
    columns = min(3, len(parameters))
    rows = math.ceil(len(parameters) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis, parameter in zip(axes, parameters, strict=False):
        _plot_parameter(axis, jobs, parameter, objective, alone=len(parameters) == 1)
        if importances and parameter in importances:
            axis.set_title(f"importance {importances[parameter]:.2f}", fontsize="medium")
    for axis in axes[len(parameters) :]:
        axis.remove()
    if (legend := axes[0].get_legend_handles_labels())[0]:
        figure.legend(*legend, loc="outside upper right")
    figure.supylabel(objective, fontsize="medium")
    figure.savefig(path, dpi=150)


def _plot_parameter(
    axis: Any, jobs: Sequence[Job], parameter: str, objective: str, alone: bool
) -> None:
    given = [job.name if parameter == "job" else job.overrides.get(parameter) for job in jobs]
    numeric = all(map(_is_number, given))
    reached = [job.summary.get(objective) if job.status == "done" else None for job in jobs]
    frame = pd.DataFrame({"x": given if numeric else map(str, given), "y": reached}, dtype=object)
    frame = frame.sort_values("x", kind="stable") if numeric else frame
    done, lost = frame.dropna(), frame[frame["y"].isna()]
    medians = done.groupby("x", sort=numeric)["y"].median()
    # categories are placed in the order in which they are first drawn, so draw them all at once
    axis.plot(frame["x"], [math.nan] * len(frame))
    if numeric and (alone or len(medians) < len(done)):
        axis.plot(medians.index, medians, color="C0", alpha=0.5)
    axis.plot(done["x"], done["y"], "o", color="C0")
    if len(lost):
        axis.plot(
            lost["x"], [0.0] * len(lost), "x", color="C3", label="no result",
            transform=axis.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    if numeric and _spans_decades(frame["x"]):
        axis.set_xscale("log")
        _few_ticks(axis.xaxis)
    if _spans_decades(done["y"]):
        axis.set_yscale("log")
        _few_ticks(axis.yaxis)
    if numeric and (few := sorted(set(frame["x"]))) and len(few) <= 5:
        axis.set_xticks(few, [f"{x:.3g}" for x in few])
    axis.set_xlabel(parameter)
    axis.grid(alpha=0.3)


def _few_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, few enough to fit."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter("{x:.3g}")
    axis.set_minor_formatter(NullFormatter())


def _spans_decades(values: pd.Series) -> bool:
    return len(values) > 1 and min(values) > 0 and max(values) >= 10 * min(values)


class SweepReport(Callback):
    """Calls `report_sweep` at the end of a multirun, even if jobs failed.

    If a job raises an error, Hydra raises it again once the other jobs have ended, and does not
    call `on_multirun_end`. So a failure is recorded in the job's folder when it happens, and the
    multirun exits with code 1 after the table is written. If the launcher fails (for example
    because a worker was killed), the table is written when the program exits; jobs on a cluster may
    still be running then.

    Args:
        objective: see `report_sweep`.
    """

    def __init__(self, objective: str) -> None:
        self.objective = objective

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        atexit.register(self._report_what_there_is, config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        # joblib sets a start method, "loky", that the job's own subprocesses do not support
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            multiprocessing.set_start_method(None, force=True)
        (Path(config.hydra.runtime.output_dir) / STATUS_FILE).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        folder = Path(config.hydra.runtime.output_dir)
        try:
            job_return.return_value  # noqa: B018  it raises the job's error
        except Exception as error:
            write_status(folder, "failed", f"{type(error).__name__}: {error}", error)
            log.error("The job failed; the traceback is in %s", folder / STATUS_FILE)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, math.nan

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        atexit.unregister(self._report_what_there_is)
        jobs = report_sweep(config.hydra.sweep.dir, self.objective)
        if any(job.status != "done" for job in jobs):
            sys.exit(1)

    def _report_what_there_is(self, folder: str) -> None:
        with contextlib.suppress(SweepError):
            report_sweep(folder, self.objective)
