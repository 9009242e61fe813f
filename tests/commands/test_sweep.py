"""Sweeps: the table and plot of a folder, and real sweeps with each launcher."""

import csv
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from scripts import collect_sweep
from src.commands.sweep import (
    Job,
    SweepError,
    plot_sweep,
    read_jobs,
    report_sweep,
    sweep_table,
    swept,
)

ROOT = Path(__file__).resolve().parents[2]


def make_job(folder: Path, overrides: list[str], summary: dict | None = None) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def sweep_folder(tmp_path) -> Path:
    """Three values of one parameter: one done, one failed after an earlier success, one killed."""
    folder = tmp_path / "sweep"
    common = ["experiment=prototypes/vae_dng", "seed=1"]
    figures = {"match_rate": 0.5, "crmse": 0.25, "rmse": None, "seed": 1, "time_s": 12.34}
    make_job(folder / "2", [*common, "vae_module.latent_dim=2"], figures)
    failed = make_job(folder / "9", [*common, "vae_module.latent_dim=4"], figures)
    status = {"status": "failed", "message": "ValueError: no [room]"}
    (failed / "status.json").write_text(json.dumps(status))
    make_job(folder / "10", [*common, "vae_module.latent_dim=8"])
    return folder


# From folders to jobs


def test_jobs_are_read_in_their_order(sweep_folder):
    jobs = read_jobs(sweep_folder)
    assert [job.name for job in jobs] == ["2", "9", "10"]
    assert [job.status for job in jobs] == ["done", "failed", "missing"]
    assert jobs[1].message == "ValueError: no [room]"
    assert jobs[0].overrides == {
        "experiment": "prototypes/vae_dng", "seed": 1, "vae_module.latent_dim": 2,
    }  # fmt: skip
    assert jobs[0].summary["crmse"] == 0.25
    assert swept(jobs) == ["vae_module.latent_dim"]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("vae_module.optimizer.lr=1e-3", "vae_module.optimizer.lr", 1e-3),
        ("+trainer.limit_val_batches=2", "trainer.limit_val_batches", 2),
        ("compile=true", "compile", "True"),
        ("data.split_ratio=[0.8,0.1,0.1]", "data.split_ratio", "[0.8,0.1,0.1]"),
        ("vae_module/optimizer=adamw", "vae_module/optimizer", "adamw"),
        ("ckpt_path='a b.ckpt'", "ckpt_path", "'a b.ckpt'"),
        ("~callbacks.match_rate", "callbacks.match_rate", "null"),
    ],
)
def test_overrides_are_read_as_hydra_reads_them(tmp_path, line, name, value):
    make_job(tmp_path / "0", [line])
    assert read_jobs(tmp_path)[0].overrides == {name: value}


def test_parameters_that_go_together_are_one():
    jobs = [Job(str(i), {"a": i, "b": i, "c": 1, "d": -i}, "done") for i in range(3)]
    assert swept(jobs) == ["a", "d"]


# The table


def test_the_csv_has_a_row_per_job(sweep_folder):
    report_sweep(sweep_folder, "crmse")
    with (sweep_folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "failed", "missing"]
    assert [row["vae_module.latent_dim"] for row in rows] == ["2", "4", "8"]
    assert [row["match_rate"] for row in rows] == ["0.5", "0.5", ""]
    assert [row["rmse"] for row in rows] == ["", "", ""]
    assert rows[1]["message"] == "ValueError: no [room]"
    assert [row["seed"] for row in rows] == ["1", "1", "1"]


def test_the_terminal_shows_what_differs_and_why_a_job_failed(sweep_folder):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(sweep_table(read_jobs(sweep_folder), "crmse"))
    text = console.export_text()
    assert "1 of 3 jobs are done" in text
    assert "latent_dim" in text
    assert "experiment" not in text
    assert "12.3" in text
    assert "9: ValueError: no [room]" in text


def test_a_folder_without_jobs_is_an_error(tmp_path, capsys):
    with pytest.raises(SweepError, match="not a sweep folder"):
        read_jobs(tmp_path)
    assert collect_sweep.main([str(tmp_path)]) == 1
    assert "not a sweep folder" in capsys.readouterr().err


def test_the_script_reports_again(sweep_folder, capsys):
    assert collect_sweep.main([str(sweep_folder), "--objective", "match_rate"]) == 0
    assert "match_rate" in capsys.readouterr().out
    assert (sweep_folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"


# The picture


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """The figure that `plot_sweep` saves."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **kwargs: figures.append(self) or save(self, *args, **kwargs),
    )

    def call(jobs, importances=None):
        plot_sweep(jobs, "crmse", tmp_path / "sweep.png", importances)
        return figures[-1]

    return call


def points(axis) -> list[tuple]:
    (line,) = [line for line in axis.lines if line.get_marker() == "o"]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_one_parameter_is_a_line_over_it(draw):
    jobs = [Job(str(z), {"latent_dim": z}, "done", "", {"crmse": 1 / z}) for z in (4, 2, 8)]
    (axis,) = draw([*jobs, Job("3", {"latent_dim": 16}, "failed")]).axes
    assert points(axis) == [(2, 0.5), (4, 0.25), (8, 0.125)]
    assert list(axis.lines[1].get_ydata()) == [0.5, 0.25, 0.125]
    (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
    assert list(cross.get_xdata()) == [16]
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "linear")
    assert axis.get_xlabel() == "latent_dim"


def test_several_parameters_have_a_panel_each(draw):
    jobs = [
        Job(f"{lr}{kind}", {"lr": lr, "kind": kind}, "done", "", {"crmse": lr})
        for lr in (1e-4, 1e-3, 1e-2)
        for kind in ("raw", "fourier")
    ]
    lr, kind = draw(jobs, {"lr": 0.75}).axes
    assert (lr.get_xscale(), lr.get_yscale()) == ("log", "log")
    assert lr.get_title() == "importance 0.75"
    assert [label.get_text() for label in kind.get_xticklabels()] == ["raw", "fourier"]
    assert len(points(kind)) == 6


def test_there_is_a_picture_of_nothing(draw):
    (axis,) = draw([Job("0", {"seed": 1}, "missing"), Job("1", {"seed": 1}, "missing")]).axes
    assert points(axis) == []


# Multiruns of a program that takes no time

PROGRAM = """
import json, os, hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    if cfg.x == 2:
        raise ValueError("two is too many")
    if cfg.x == 3:
        os.kill(os.getpid(), 9)
    folder = HydraConfig.get().runtime.output_dir
    with open(folder + "/summary.json", "w") as file:
        json.dump({"crmse": cfg.x}, file)

main()
"""


def multirun(folder: Path, *overrides: str) -> tuple[subprocess.CompletedProcess, list[dict]]:
    (folder / "program.py").write_text(PROGRAM)
    callbacks = OmegaConf.load(ROOT / "configs" / "hydra" / "default.yaml").callbacks
    hydra = {"sweep": {"dir": str(folder / "sweep")}, "callbacks": callbacks}
    OmegaConf.save({"x": 0, "hydra": hydra}, folder / "config.yaml")
    done = subprocess.run(
        [sys.executable, "program.py", "-m", "-cd", str(folder), *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    with (folder / "sweep" / "sweep.csv").open() as file:
        return done, list(csv.DictReader(file))


def test_the_other_jobs_go_on_where_one_fails(tmp_path):
    done, rows = multirun(tmp_path, "x=1,2,5")
    assert done.returncode == 1
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert rows[1]["message"] == "ValueError: two is too many"
    assert "2 of 3 jobs are done" in done.stdout
    assert "1: ValueError: two is too many" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    status = json.loads((tmp_path / "sweep" / "1" / "status.json").read_text())
    assert "program.py" in status["traceback"]
    # the same again, with what failed put right
    done, rows = multirun(tmp_path, "x=1,4,5")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in rows] == ["done", "done", "done"]


@pytest.mark.slow
def test_there_is_a_table_where_a_worker_was_killed(tmp_path):
    done, rows = multirun(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "x=1,3")
    assert done.returncode == 1
    # the other job may not have begun when its pool went with the worker
    assert "missing" in [row["status"] for row in rows]
    assert f"of {len(rows)} job" in done.stdout


@pytest.mark.parametrize("task", ["a", "b"])
def test_jobs_that_differ_in_their_task_share_a_folder(task):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(
            "train_vae", [f"task_name={task}", "paths.log_dir=logs"], return_hydra_config=True
        )
    assert Path(cfg.hydra.sweep.dir).parent == Path("logs", "multiruns")


# Real ones

TINY = [
    "experiment=prototypes/vae_dng", "debug=fast", "trainer=cpu", "trainer.max_steps=2",
    "vae_module.encoder.d_model=16", "vae_module.encoder.num_layers=1",
    "vae_module.decoder.d_model=16", "vae_module.decoder.num_layers=1",
    "eval.num_workers=1", "callbacks.match_rate.every_n_epochs=0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_sweep_of_training_runs(launcher, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "src" / "train_vae.py"), "-m", f"hydra/launcher={launcher}",
            "vae_module.encoder.nhead=2,3", *TINY, f"hydra.sweep.dir={tmp_path}/sweep",
            f"paths.cache_dir={tmp_path}/cache",
        ],
        env={**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "120"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    jobs = read_jobs(tmp_path / "sweep")
    assert [job.status for job in jobs] == ["done", "failed"]
    assert jobs[0].summary["steps"] == 2
    assert jobs[0].summary["crystals_evaluated"] == 16
    assert "not a multiple of nhead=3" in jobs[1].message
    assert "1 of 2 jobs are done" in done.stdout
    assert (tmp_path / "sweep" / "sweep.png").is_file()


# Slurm, of which the commands are replaced by scripts


def put_command(folder: Path, name: str, lines: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.slow
def test_the_launcher_for_slurm_asks_for_what_its_config_says(tmp_path):
    put_command(tmp_path / "bin", "srun", "exit 0")
    put_command(tmp_path / "bin", "sbatch", f'cp "${{@: -1}}" {tmp_path}/submitted; exit 1')
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "src" / "train_vae.py"), "-m", "hydra/launcher=slurm", *TINY,
            "hydra.launcher.partition=gpu", "hydra.launcher.setup=[module load cuda]",
            "vae_module.latent_dim=2,4,8", f"hydra.sweep.dir={tmp_path}/sweep",
        ],
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    script = (tmp_path / "submitted").read_text()
    for line in (
        "--array=0-2%3", "--partition=gpu", "--gpus-per-node=1", "--time=240", "--mem=32GB",
        "--cpus-per-task=8", "--signal=USR2@120", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "\nmodule load cuda\n" in script


# Weights & Biases


def test_the_sweep_of_wandb_gives_overrides_that_hydra_takes(monkeypatch, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    sweep = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    for end in (0, -1):
        values = {
            name: p["values"][end] if "values" in p else p["min" if end == 0 else "max"]
            for name, p in sweep["parameters"].items()
        }
        arguments = create_sweep_command_args({"args": {k: {"value": values[k]} for k in values}})
        command = create_sweep_command(sweep["command"])
        assert command[:3] == ["${env}", "${interpreter}", "${program}"]
        assert command[-1] == "${args_no_hyphens}"
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train_vae", [*command[3:-1], *arguments["args_no_hyphens"]])
        assert {name: OmegaConf.select(cfg, name) for name in values} == values
        assert cfg.logger.wandb.project == sweep["project"]


def test_wandb_has_the_same_objective():
    sweep = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text())
    callbacks = OmegaConf.load(ROOT / "configs" / "hydra" / "default.yaml").callbacks
    assert sweep["metric"]["name"] == f"summary/{callbacks.sweep_report.objective}"
