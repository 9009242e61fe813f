"""The Slurm scripts, run by bash with the Slurm commands replaced by scripts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from src.commands.sweep import read_jobs

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
TINY = [
    "experiment=prototypes/vae_dng", "debug=fast", "trainer=cpu",
    "vae_module.encoder.d_model=16", "vae_module.encoder.num_layers=1",
    "vae_module.decoder.d_model=16", "vae_module.decoder.num_layers=1",
    "eval.num_workers=1", "callbacks.match_rate.every_n_epochs=0",
]  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def slurm(tmp_path):
    """Run a script as job 7 named vae, with a fake `srun` that executes its arguments.

    `srun` writes its arguments to `arguments`, and does nothing else if `executes` is false.
    """
    commands = tmp_path / "bin"
    commands.mkdir()

    def start(script: str, *arguments: str, executes: bool = True, **environment: str):
        for name, lines in (
            ("srun", f'printf "%s\\n" "$@" >{tmp_path}/arguments\n' + 'exec "$@"' * executes),
            ("scontrol", f'echo "$@" >>{tmp_path}/scontrol'),
        ):
            (commands / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
            (commands / name).chmod(0o755)
        job = {
            "JOB_ID": "7", "JOB_NAME": "vae", "NTASKS": "1", "PROCID": "0", "LOCALID": "0",
            "NODEID": "0", "SUBMIT_DIR": str(ROOT), "CPUS_PER_TASK": "1",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "slurm" / script), *arguments],
            env={
                **os.environ,
                **{f"SLURM_{name}": value for name, value in job.items()},
                "PATH": f"{commands}:{os.environ['PATH']}",
                "PYTHON": sys.executable,
                "PYTHONWARNINGS": "ignore",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, str(path)], check=True)


def test_the_folder_of_a_job_is_its_own(slurm, tmp_path):
    job = slurm("train.sbatch", "seed=3", "task_name=a b", executes=False)
    said = job.communicate()[0]
    assert job.returncode == 0, said
    assert (tmp_path / "arguments").read_text().splitlines() == [
        sys.executable, "src/train_vae.py", "seed=3", "task_name=a b",
        "hydra.run.dir=logs/slurm/vae-7", "resume_from=last",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "overrides", "expected"),
    [("4", "", ["seed=4"]), ("2", "runs.txt", ["vae_module.latent_dim=2", "seed=1"])],
)
def test_a_task_of_an_array_has_its_own_overrides(slurm, tmp_path, task, overrides, expected):
    (tmp_path / "runs.txt").write_text("seed=0\nvae_module.latent_dim=2 seed=1\n")
    job = slurm(
        "array.sbatch", "compile=true", executes=False, SLURM_ARRAY_JOB_ID="6",
        SLURM_ARRAY_TASK_ID=task, OVERRIDES=f"{tmp_path}/{overrides}" if overrides else "",
    )  # fmt: skip
    said = job.communicate()[0]
    assert job.returncode == 0, said
    assert (tmp_path / "arguments").read_text().splitlines()[2:] == [
        "compile=true", *expected, f"hydra.run.dir=logs/slurm/vae-6/{task}", "resume_from=last",
    ]  # fmt: skip


def test_a_task_without_a_line_is_an_error(slurm, tmp_path):
    (tmp_path / "runs.txt").write_text("seed=0\n")
    job = slurm(
        "array.sbatch", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="2",
        OVERRIDES=str(tmp_path / "runs.txt"),
    )  # fmt: skip
    assert "has no line 2" in job.communicate()[0]
    assert job.returncode == 1


@pytest.mark.slow
def test_a_job_whose_time_is_up_continues_when_it_is_queued_again(slurm, tmp_path):
    run = tmp_path / "run"
    arguments = [
        *TINY, f"paths.cache_dir={tmp_path}/cache", "trainer.max_epochs=100",
        "trainer.limit_val_batches=1", "eval.num_crystals=4",
    ]  # fmt: skip
    job = slurm("train.sbatch", *arguments, RUN_DIR=str(run))
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate()[0]
    assert job.returncode == 128 + signal.SIGUSR1, said
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 300
    assert not (run / "summary.json").exists()

    job = slurm("train.sbatch", *arguments, RUN_DIR=str(run))
    said = " ".join(job.communicate()[0].split())
    assert job.returncode == 0, said
    assert f"after step {step}" in said
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 300
    assert (run / "summary.json").is_file()


@pytest.mark.slow
def test_an_array_over_seeds_is_a_sweep(slurm, tmp_path):
    for task in ("0", "1"):
        job = slurm(
            "array.sbatch", *TINY, f"paths.cache_dir={tmp_path}/cache", RUN_DIR=f"{tmp_path}/array",
            SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID=task,
        )  # fmt: skip
        said = job.communicate()[0]
        assert job.returncode == 0, said
    jobs = read_jobs(tmp_path / "array")
    assert [(job.status, job.overrides["seed"]) for job in jobs] == [("done", 0), ("done", 1)]
