"""A CSV logger that keeps the rows of earlier steps when a run is continued."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src.utils.output import new_file


class CSVLogger(LightningCSVLogger):
    """Lightning's `CSVLogger` for runs that are continued from a checkpoint.

    When a run is continued, the rows of earlier steps stay in `metrics.csv`. Rows that the run
    wrote after the checkpoint and before it was killed are removed, since these steps are repeated.
    """

    _first_step = 0

    def continue_from(self, step: int) -> None:
        """Keep the rows of the first `step` steps. Call this before anything is logged."""
        self._first_step = step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self._first_step)
        return self._experiment  # type: ignore[return-value]


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, first_step: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        text = path.read_text()
        # the last line is incomplete if the process was killed
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        rows = [row for row in reader if _is_before(row, first_step)]
        path.unlink() if not rows else self._replace(reader.fieldnames or [], rows)

    def _check_log_dir_exists(self) -> None:
        """Overridden, because Lightning's deletes the file."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._replace(fieldnames, rows)

    def _replace(self, fieldnames: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.metrics_keys = list(fieldnames)
        with (
            new_file(self.metrics_file_path, overwrite=True) as path,
            path.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


def _is_before(row: Mapping[str, str], first_step: int) -> bool:
    """Whether a row is from the first `first_step` steps; their summary has the step after them."""
    is_summary = any(name.startswith("summary/") and value for name, value in row.items())
    return int(row["step"]) < first_step + is_summary
