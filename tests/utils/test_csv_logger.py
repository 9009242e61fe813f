"""Check that the metrics.csv of a resumed run contains every row once."""

import csv
from pathlib import Path

from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src.utils.csv_logger import CSVLogger


def make_logger(folder: Path, first_step: int = 0) -> CSVLogger:
    logger = CSVLogger(folder, name="", version="")
    logger.continue_from(first_step)
    return logger


def log_steps(logger: CSVLogger, *steps: int) -> None:
    for step in steps:
        logger.log_metrics({"loss": step / 10}, step=step)
    logger.save()


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in read(folder)]


def test_rows_after_the_checkpoint_are_not_repeated(tmp_path):
    log_steps(make_logger(tmp_path), 0, 1, 2, 3)
    log_steps(make_logger(tmp_path, 2), 2, 3, 4)
    assert read(tmp_path) == [{"loss": str(i / 10), "step": str(i)} for i in range(5)]


def test_earlier_rows_are_kept_if_nothing_new_is_logged(tmp_path):
    log_steps(make_logger(tmp_path), 0, 1, 2)
    assert make_logger(tmp_path, 2).experiment
    assert steps(tmp_path) == [0, 1]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    log_steps(make_logger(tmp_path), 0, 1, 2)
    log_steps(make_logger(tmp_path), 0)
    assert steps(tmp_path) == [0]
    assert make_logger(tmp_path).experiment
    assert not (tmp_path / "metrics.csv").exists()


def test_an_incomplete_last_line_is_ignored(tmp_path):
    log_steps(make_logger(tmp_path), 0, 10, 20)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes().removesuffix(b"20\r\n") + b"2")  # step 20, cut off
    log_steps(make_logger(tmp_path, 11), 11)
    assert steps(tmp_path) == [0, 10, 11]


def test_columns_that_are_added_later(tmp_path):
    log_steps(make_logger(tmp_path), 0, 1)
    logger = make_logger(tmp_path, 1)
    log_steps(logger, 1)
    logger.log_metrics({"accuracy": 0.5}, step=1)
    log_steps(logger, 2)
    rows = read(tmp_path)
    assert [row["loss"] for row in rows] == ["0.0", "0.1", "", "0.2"]
    assert [row["accuracy"] for row in rows] == ["", "", "0.5", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]  # no partial file is left


def test_the_summary_of_a_finished_run_is_kept(tmp_path):
    logger = make_logger(tmp_path)
    log_steps(logger, 0, 1)
    logger.log_metrics({"summary/match_rate": 0.9}, step=2)
    log_steps(logger)
    log_steps(make_logger(tmp_path, 2), 2)
    assert [row["summary/match_rate"] for row in read(tmp_path)] == ["", "", "0.9", ""]
    assert make_logger(tmp_path, 1).experiment
    assert steps(tmp_path) == [0]


def test_other_features_of_lightnings_logger_work(tmp_path):
    logger = make_logger(tmp_path)
    logger.log_hyperparams({"width": 16})
    log_steps(logger, 0)
    logger.finalize("success")
    assert isinstance(logger.experiment, ExperimentWriter)
    assert "width: 16" in (tmp_path / "hparams.yaml").read_text()
