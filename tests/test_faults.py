"""Runs that are killed, stopped, starved of disk, or started twice."""

import csv
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback

from src.callbacks import NonFiniteError
from src.commands import train as training
from src.commands.train import train
from src.data.dataset import CrystalDataset
from src.utils.checkpoints import CheckpointError, load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    f"vae_module.{part}.{name}={value}"
    for part in ("encoder", "decoder")
    for name, value in (
        ("d_model", 16), ("nhead", 2), ("num_layers", 1), ("dim_feedforward", 16), ("dropout", 0.1),
    )
]  # fmt: skip
# All that is random is switched on, and nothing depends on the clock.
COMMON = [
    "experiment=prototypes/vae_dng", "trainer=cpu", "trainer.precision=32-true", *SMALL,
    "vae_module.mask_ratio=0.2", "vae_module.jitter_ratio=0.2", "vae_module.latent_noise=0.2",
    "data.batch_size=16", "trainer.log_every_n_steps=1", "trainer.max_epochs=2",
    "callbacks.progress_bar.refresh_rate=0",
    "callbacks.validation_budget.max_share=null", "callbacks.match_rate.every_n_epochs=2",
    "callbacks.match_rate.num_crystals=2", "callbacks.match_rate.max_share=null",
    "callbacks.last_checkpoint.every_n_steps=1", "eval.num_crystals=2", "eval.num_workers=0",
]  # fmt: skip
STEPS = 4  # in an epoch
ENVIRONMENT = {"PYTHONWARNINGS": "ignore", "COLUMNS": "500", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> list[str]:
    """Overrides for a few of the included crystals: 64 for training, 8 for validation."""
    folder = tmp_path_factory.mktemp("data")
    for split, size in (("train", 64), ("val", 8)):
        table = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=size)
        table.to_csv(folder / f"{split}.csv", index=False)
    return [*COMMON, f"data.data_dir={folder}", f"paths.cache_dir={folder}/cache"]


def run_here(folder: Path, overrides: list[str], *callbacks: Callback) -> dict[str, Any]:
    """A run in this process."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train_vae", overrides=[*overrides, f"paths.output_dir={folder}"])
    return train(cfg, callbacks)


STARTED: list[subprocess.Popen[str]] = []  # by the test that runs


@pytest.fixture(autouse=True)
def no_process_stays():
    """After a test that failed: it would take the CPUs from those that follow."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()  # does nothing to one that has ended


def popen(arguments: list[Any], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def start(
    folder: Path, overrides: list[str], env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    command = [ROOT / "src" / "train_vae.py", *overrides, f"hydra.run.dir={folder}"]
    return popen(command, {**os.environ, **ENVIRONMENT, **(env or {})})


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for its end, for as long as a test may take; returns what it printed."""
    output, _ = process.communicate()
    assert process.returncode == code, output
    return output


def last(folder: Path, name: str = "last") -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")


def metrics(folder: Path) -> list[dict[str, str]]:
    """What the run logged, except for speeds and paths."""
    clock = ("crystals_per_second", "time_s", "training_steps_s")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.endswith(clock)} for row in rows]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Compare bit for bit: logs, and weights, optimizer and schedule of both checkpoints."""
    assert metrics(folder) == metrics(expected)
    for name in ("last", "best"):
        ours, theirs = last(folder, name), last(expected, name)
        assert ours["global_step"] == theirs["global_step"]
        assert ours["lr_schedulers"] == theirs["lr_schedulers"]
        assert ours.keys() == theirs.keys()
        for key in ("state_dict", "optimizer_states", "current_model_state", "averaging_state"):
            assert_equal(ours.get(key), theirs.get(key))


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


class At(Callback):
    """Calls a function when a hook is called after the given number of steps."""

    def __init__(self, hook: str, step: int, action: Callable[[], Any]) -> None:
        def act(trainer, *args, **kwargs) -> None:
            if trainer.global_step == step:
                action()

        setattr(self, hook, act)


class Crash(Exception):
    """A bug."""


def crash() -> None:
    raise Crash


# Killed


@pytest.fixture(scope="module")
def whole(common, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, common)
    return folder


@pytest.mark.parametrize(
    ("hook", "step"), [("on_before_optimizer_step", 3), ("on_validation_batch_start", 4)]
)
def test_a_run_that_crashes_goes_on_as_if_it_had_not(common, whole, tmp_path, hook, step):
    """Within an epoch, and in the validation at the end of an epoch."""
    with pytest.raises(Crash):
        run_here(tmp_path, common, At(hook, step, crash))
    assert last(tmp_path)["global_step"] == 3
    run_here(tmp_path, [*common, "resume_from=last"])
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=7"],
        ["callbacks=ema", "callbacks.ema.decay=0.9"],
        ["trainer.accumulate_grad_batches=3", "data.batch_size=8"],
        ["trainer.check_val_every_n_epoch=2"],
        ["callbacks.last_checkpoint.every_n_steps=3", "trainer.log_every_n_steps=2"],
    ],
    ids=["max_steps", "ema", "accumulate", "rare validation", "rare checkpoints"],
)
def test_a_crash_anywhere(common, tmp_path, overrides):
    run_here(tmp_path / "whole", [*common, *overrides])
    steps = last(tmp_path / "whole")["global_step"]
    ends = {int(row["step"]) + 1 for row in metrics(tmp_path / "whole") if "val/loss" in row}
    points = [("on_train_batch_start", step) for step in range(steps)]
    points += [
        (hook, step) for hook in ("on_validation_end", "on_train_epoch_end") for step in ends
    ]
    for hook, step in points:
        folder = tmp_path / f"{hook}_{step}"
        with pytest.raises(Crash):
            run_here(folder, [*common, *overrides], At(hook, step, crash))
        run_here(folder, [*common, *overrides, "resume_from=last"])
        assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_ten_kills_at_any_moment(common, tmp_path):
    common = [*common, "trainer.max_epochs=80", "callbacks.last_checkpoint.every_n_steps=3"]
    finish(start(tmp_path / "whole", common))
    rng, folder, steps = random.Random(0), tmp_path / "parts", [0]
    for _ in range(10):
        process = start(folder, [*common, "resume_from=last"])
        path = folder / "checkpoints" / "last.ckpt"
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not (path.exists() and path.stat().st_mtime_ns != before):  # it trains
            assert process.poll() is None, finish(process)
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        finish(process, -signal.SIGKILL)
        steps.append(last(folder)["global_step"])
    assert sorted(set(steps)) == steps, "each got some way"
    assert any(step % STEPS for step in steps), "within an epoch too"
    assert steps[-1] < 80 * STEPS, "and none to the end"
    output = finish(start(folder, [*common, "resume_from=last"]))
    assert f"last.ckpt, after step {steps[-1]}" in output
    assert_same_run(folder, tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(common, whole, tmp_path, caplog):
    """Even if it was moved to another folder."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    path = folder / "metrics.csv"
    before = path.read_text(), (folder / "summary.json").read_text()
    summary = run_here(folder, [*common, "resume_from=last"])
    assert "is finished, and stays as it is" in caplog.text
    assert (path.read_text(), (folder / "summary.json").read_text()) == before
    assert summary == json.loads(before[1])


@pytest.mark.slow
def test_a_run_can_be_given_more_steps(common, tmp_path):
    """It stopped within an epoch, and continues there."""
    common = [*common, "scheduler=constant", "trainer.max_epochs=3"]
    run_here(tmp_path / "whole", [*common, "trainer.max_steps=11"])
    run_here(tmp_path / "parts", [*common, "trainer.max_steps=6"])
    run_here(tmp_path / "parts", [*common, "trainer.max_steps=11", "resume_from=last"])
    whole, parts = (last(tmp_path / name) for name in ("whole", "parts"))
    assert parts["global_step"] == 11
    assert_equal(parts["state_dict"], whole["state_dict"])


# Told to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_ends_the_run(common, whole, tmp_path, number, caplog):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        run_here(
            tmp_path,
            common,
            At("on_before_optimizer_step", 5, lambda: os.kill(os.getpid(), number)),
        )
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert f"stopped after step 6, saved in {tmp_path}/checkpoints/last.ckpt" in caplog.text
    assert last(tmp_path)["global_step"] == 6  # the one that was under way is finished
    run_here(tmp_path, [*common, "resume_from=last"])
    assert_same_run(tmp_path, whole)


FAKE_SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/called"
"""
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Callable[[], list[str]]:
    """Make this process look like a Slurm job; returns the arguments of `scontrol`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(FAKE_SCONTROL)
    (folder / "scontrol").chmod(0o755)
    for name, value in {**SLURM, "PATH": f"{folder}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    called = folder / "called"
    return lambda: called.read_text().splitlines() if called.exists() else []


def tell(monkeypatch, owner: Any, name: str, number: signal.Signals) -> None:
    """Send this process a signal when a function is called, before the function does its work."""
    function = getattr(owner, name)

    def told(*args, **kwargs):
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, told)


@pytest.mark.parametrize(
    ("number", "calls"), [(signal.SIGTERM, []), (signal.SIGUSR1, ["requeue 77"])]
)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(training, "evaluate_reconstruction"), (training.DataModule, "prepare_data")],
    ids=["after the last step", "before the first"],
)
def test_a_signal_outside_the_steps_is_heeded(
    common, whole, tmp_path, monkeypatch, slurm, owner, name, number, calls
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        tell(patch, owner, name, number)
        with pytest.raises(SystemExit) as stopped:
            run_here(folder, common)
    assert stopped.value.code == 128 + number
    assert slurm() == calls
    assert not (folder / "summary.json").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)] == [signal.SIG_DFL] * 2
    summary = run_here(folder, [*common, "resume_from=last"])
    assert_same_run(folder, whole)
    expected = json.loads((whole / "summary.json").read_text())
    for figure in ("match_rate", "lengths_mae", "best_val_loss", "steps", "epochs"):
        assert summary[figure] == expected[figure]


@pytest.mark.parametrize("steps", [STEPS + 1, 2 * STEPS], ids=["within", "at the end of"])
def test_a_run_that_ended_with_an_epoch_has_its_figures_later(common, tmp_path, monkeypatch, steps):
    common = [*common, f"trainer.max_steps={steps}", "trainer.max_epochs=-1"]
    with monkeypatch.context() as patch:
        tell(patch, training, "evaluate_reconstruction", signal.SIGTERM)
        with pytest.raises(SystemExit):
            run_here(tmp_path, common)
    summary = run_here(tmp_path, [*common, "resume_from=last"])
    assert (summary["steps"], summary["epochs"]) == (steps, 2)


def test_a_signal_while_lightning_tidies_up_is_heeded(common, tmp_path, slurm):
    """After the callback's last check, and before the fit returns."""
    late = At("on_fit_end", 2 * STEPS, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(SystemExit) as stopped:
        run_here(tmp_path / "run", common, late)
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert slurm() == ["requeue 77"]
    assert last(tmp_path / "run")["global_step"] == 2 * STEPS


def test_a_run_that_has_its_results_is_not_queued_again(common, tmp_path, monkeypatch, slurm):
    tell(monkeypatch, training.VAETraining, "table", signal.SIGUSR1)
    summary = run_here(tmp_path / "run", [*common, "trainer.max_epochs=1"])
    assert summary["steps"] == STEPS
    assert slurm() == []
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_run_that_keeps_no_state_leaves_signals_alone(common, tmp_path, monkeypatch):
    """If requeued, it would lose all its steps. Lightning has its own signal handlers."""
    handlers = []
    evaluate = training.evaluate_reconstruction
    monkeypatch.setattr(
        training,
        "evaluate_reconstruction",
        lambda *args, **kwargs: (
            handlers.append(signal.getsignal(signal.SIGUSR1)) or evaluate(*args, **kwargs)
        ),
    )
    run = [o for o in common if not o.startswith("callbacks.")]
    run_here(tmp_path, [*run, "callbacks=none", "trainer.max_epochs=1"])
    assert set(handlers) == {signal.SIG_DFL}


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["trainer.max_epochs=2", "trainer.max_time=00:00:00:04"])
def test_a_signal_to_the_real_command_as_it_matches(common, tmp_path, limit):
    """A Slurm job that runs out of time during the final matching, twice."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(FAKE_SCONTROL)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    env = {**SLURM, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    folder = tmp_path / "run"
    # a worker takes seconds to start
    command = [*common, "trainer.max_epochs=-1", limit, "eval.num_workers=1", "resume_from=last"]
    steps = []
    for count in (1, 2):
        process = start(folder, command, env=env)
        log = folder / "train_vae.log"
        while not log.exists() or log.read_text().count("Evaluating") < count:
            assert process.poll() is None, finish(process)
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        finish(process, 128 + signal.SIGUSR1)
        assert (tmp_path / "bin" / "called").read_text() == "requeue 77\n" * count
        assert not (folder / "summary.json").exists()
        steps.append(last(folder)["global_step"])
    finish(start(folder, command, env=env))
    assert json.loads((folder / "summary.json").read_text())["steps"] == steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "env", "calls"),
    [
        (signal.SIGTERM, {}, []),
        (signal.SIGUSR1, {}, []),
        (signal.SIGTERM, SLURM, []),
        (signal.SIGUSR1, SLURM, ["requeue 77"]),
        (
            signal.SIGUSR1,
            {**SLURM, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"},
            ["requeue 70_3"],
        ),
    ],
    ids=["term", "usr1", "slurm term", "slurm usr1", "slurm array"],
)
def test_signals_to_the_real_command(common, tmp_path, number, env, calls):
    """Far from any checkpoint, so that only the signal can cause one."""
    common = [*common, "trainer.max_epochs=60", "callbacks.last_checkpoint.every_n_steps=0"]
    common += ["trainer.check_val_every_n_epoch=20"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(FAKE_SCONTROL)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    env = {**env, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    folder = tmp_path / "run"

    process = start(folder, common, env=env)
    path = folder / "metrics.csv"
    while not path.exists() or path.read_text().count("\n") < 50:
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    process.send_signal(number)
    output = finish(process, 128 + number)
    step = last(folder)["global_step"]
    assert 10 < step < 60 * STEPS
    assert f"{number.name}: stopped after step {step}" in output
    called = tmp_path / "bin" / "called"
    assert (called.read_text().splitlines() if called.exists() else []) == calls
    assert not (folder / "summary.json").exists()

    finish(start(folder, [*common, "resume_from=last"], env=env))
    finish(start(tmp_path / "whole", common))
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(common, tmp_path):
    """They agree on the step, so that the run resumes exactly here too."""
    common = [
        *common, "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=12",
        "data.batch_size=8", "trainer.log_every_n_steps=5",
    ]  # fmt: skip
    process = start(tmp_path / "run", common)
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    process.terminate()
    finish(process, 128 + signal.SIGTERM)
    assert 0 < last(tmp_path / "run")["global_step"] < 12 * STEPS
    finish(start(tmp_path / "run", [*common, "resume_from=last"]))
    finish(start(tmp_path / "whole", common))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# Files that fail


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(common, tmp_path, caplog):
    caplog.set_level(logging.INFO, "src")
    with pytest.raises(Crash):
        run_here(tmp_path, common, At("on_train_batch_start", 6, crash))
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(Crash):
        run_here(tmp_path, [*common, "resume_from=last"], At("on_train_batch_start", STEPS, crash))
    assert f"{path} is damaged" in caplog.text
    assert f"Continuing from {path.with_name('best.ckpt')}, after step {STEPS}" in caplog.text
    path.with_name("best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be resumed"):
        run_here(tmp_path, [*common, "resume_from=last"])


def test_a_disk_that_fills_up(common, whole, tmp_path):
    """A limit on the file size stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (whole / "checkpoints" / "last.ckpt").stat().st_size

    def shrink() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be written .*too large"):
            run_here(tmp_path, common, At("on_before_optimizer_step", 5, shrink))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert last(tmp_path)["global_step"] == 5
    run_here(tmp_path, [*common, "resume_from=last"])
    assert_same_run(tmp_path, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True
        ).returncode
    ):
        pytest.skip("a file system can be mounted by root alone")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_command_with_one_message(common, whole, tmp_path, small_disk):
    folder = small_disk / "run"
    finish(start(folder, [*common, "trainer.max_epochs=1"]))
    used = shutil.disk_usage(small_disk)
    (small_disk / "filler").write_bytes(bytes(used.free - 50_000))
    output = finish(start(folder, [*common, "resume_from=last"]), code=1)
    assert "ckpt cannot be written ([Errno 28] No space left on device)" in output
    assert "Traceback" not in output
    assert last(folder)["global_step"] == STEPS
    (small_disk / "filler").unlink()
    finish(start(folder, [*common, "resume_from=last"]))
    assert last(folder)["global_step"] == 2 * STEPS


# A loss that is lost


def test_a_run_that_diverges_stops_and_keeps_its_checkpoints(common, tmp_path):
    """The learning rate is absurdly large from the third step on."""
    run = [*common, "scheduler=constant", "trainer.max_epochs=3"]

    class Explode(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                trainer.optimizers[0].param_groups[0]["lr"] = 1e30

    with pytest.raises(NonFiniteError, match=r"in step 7, .*_loss is (nan|inf)") as error:
        run_here(tmp_path, run, Explode())
    batch = CrystalDataset.load(tmp_path / "nan_batch_step_7.safetensors")
    assert len(batch) == 16
    assert str(tmp_path / "nan_batch_step_7.safetensors") in str(error.value)
    for name in ("last", "best"):
        weights = last(tmp_path, name)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights)
    assert last(tmp_path)["global_step"] in (5, 6)
    assert not (tmp_path / "summary.json").exists()


def test_figures_that_are_not_finite_are_null_in_the_summary(common, tmp_path, monkeypatch):
    evaluate = training.evaluate_reconstruction
    lost = {"lengths_mae": math.inf, "rmse": math.nan, "volume_mape": -math.inf}
    monkeypatch.setattr(
        training, "evaluate_reconstruction", lambda *args, **how: {**evaluate(*args, **how), **lost}
    )
    summary = run_here(tmp_path, [*common, "trainer.max_epochs=1"])
    assert summary["lengths_mae"] == math.inf
    text = (tmp_path / "summary.json").read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [written[name] for name in lost] == [None, None, None]
    assert written["steps"] == STEPS


# Runs beside runs


@pytest.mark.slow
def test_one_folder_is_for_one_run(common, tmp_path):
    common = [*common, "trainer.max_epochs=100000"]
    first = start(tmp_path, common)
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None, finish(first)
        time.sleep(0.01)
    config = (tmp_path / "config.yaml").read_bytes()
    output = finish(start(tmp_path, [*common, "seed=1"]), code=1)
    assert f"{tmp_path} is in use by process {first.pid} on " in output
    assert "Traceback" not in output
    assert (tmp_path / "config.yaml").read_bytes() == config
    first.kill()
    finish(first, -signal.SIGKILL)
    finish(start(tmp_path, [*common, "trainer.max_epochs=1"]))


LOAD = """
import os, sys
import hydra.core.hydra_config, lightning  # as every command has them, before it can fail
from src.data import DataModule
from src.utils.errors import exit_on_user_error
@exit_on_user_error
def main():
    print(len(DataModule(sys.argv[1], cache_dir=sys.argv[2]).dataset("train")))
if "nobody" in sys.argv:  # only now, since this user may not be able to read the environment
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
main()
"""


def load(data_dir: Path, cache_dir: Path, *user: str) -> subprocess.Popen[str]:
    return popen(["-W", "ignore", "-c", LOAD, data_dir, cache_dir, *user])


@pytest.mark.slow
def test_twelve_processes_and_one_empty_cache(tmp_path):
    source = pd.read_csv(ROOT / "data" / "prototypes" / "train.csv", nrows=1000)
    source.to_csv(tmp_path / "train.csv", index=False)
    processes = [load(tmp_path, tmp_path / "cache") for _ in range(12)]
    assert [finish(process).split()[-1] for process in processes] == ["1000"] * 12
    names = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert names == ["", ".lock"]


@pytest.fixture
def open_folder():
    """A folder that any user may read, unlike pytest's own temporary folders."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.slow
def test_a_user_who_may_write_nowhere(open_folder):
    """With and without an existing cache."""
    data, cache = open_folder / "data", open_folder / "cache"
    data.mkdir()
    table = pd.read_csv(ROOT / "data" / "prototypes" / "train.csv", nrows=10)
    table.to_csv(data / "train.csv", index=False)
    if os.geteuid():
        pytest.skip("becoming another user is for root alone")
    output = finish(load(data, cache, "nobody"), code=1)
    assert "Cannot write the cache" in output
    assert "point data.cache_dir to a writable folder" in output
    assert "Traceback" not in output
    assert finish(load(data, cache)).split()[-1] == "10"
    assert finish(load(data, cache, "nobody")).split()[-1] == "10"


# Sweeps


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_that_fails(common, tmp_path):
    process = subprocess.run(
        [
            sys.executable, ROOT / "src" / "train_vae.py", "-m", *common,
            "trainer.max_epochs=1", "data.batch_size=16,0,32", f"hydra.sweep.dir={tmp_path}",
        ],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    assert process.returncode == 1
    assert "batch_size must be at least 1, not 0" in process.stdout
    made = {path.parent.name for path in tmp_path.glob("*/summary.json")}
    assert made == {"0", "2"}
