"""Several processes on one machine (gloo) train as one process does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.utils.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    f"vae_module.{part}.{name}={value}"
    for part in ("encoder", "decoder")
    for name, value in (("d_model", 16), ("nhead", 2), ("num_layers", 1), ("dim_feedforward", 16))
]
# 1,203 crystals: the last batch of an epoch is a small one, and odd
SHORT = [
    "data=prototypes",
    "data.max_num_atoms=4",
    "data.max_rejected=1",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.validation_budget.max_share=null",
    "callbacks.match_rate.every_n_epochs=0",
    "eval.num_crystals=8",
    "eval.num_workers=0",
]


def train(folder: Path, cache: Path, *overrides: str, code: int = 0) -> str:
    """Run the command in processes of its own; returns what it printed."""
    command = [sys.executable, str(ROOT / "src" / "train_vae.py"), *SHORT, *TINY, *overrides]
    done = subprocess.run(
        [*command, f"hydra.run.dir={folder}", f"paths.cache_dir={cache}"],
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONPATH": str(ROOT),
        },
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def agree(one: Path, many: Path) -> None:
    """Losses of each step, validation, final weights: the same within float32 rounding."""
    first, second = (pd.read_csv(folder / "metrics.csv") for folder in (one, many))
    for name in first.columns:
        if name.startswith(("train/", "val/", "summary/")) and not name.endswith("_second"):
            if name in ("summary/time_s", "summary/training_steps_s"):
                continue
            left, right = first[name].dropna(), second[name].dropna()
            assert len(left) == len(right), name
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)
    weights = [load_checkpoint(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (one, many)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        left, right = (without_key_bias(name, each) for each in (weight, weights[1][name]))
        torch.testing.assert_close(left, right, rtol=1e-4, atol=5e-6, msg=name)


def without_key_bias(name: str, weight: torch.Tensor) -> torch.Tensor:
    """All of a weight, except for the bias of the keys of an attention.

    It shifts all scores of a query alike, which the softmax cancels. So its gradient is rounding
    and nothing else, and the optimizer, which divides by the size of the gradient, makes that as
    large as its steps.
    """
    if not name.endswith("self_attn.in_proj_bias"):
        return weight
    query, _, value = weight.chunk(3)
    return torch.cat([query, value])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"],
        [
            "vae_module.mask_ratio=0.1",
            "vae_module.jitter_ratio=0.1",
            "vae_module.rotate=true",
            "vae_module.latent_noise=0.2",
        ],
    ],
    ids=["plain", "accumulated", "corrupted"],
)
def test_two_processes_train_as_one(tmp_path, more):
    one, many, cache = tmp_path / "one", tmp_path / "many", tmp_path / "cache"
    train(one, tmp_path / "other_cache", "trainer=cpu", "data.batch_size=256", *more)
    printed = train(many, cache, "trainer=ddp_sim", "data.batch_size=128", *more)
    agree(one, many)
    steps = pd.read_csv(one / "metrics.csv")["train/loss"].notna().sum()
    assert steps == json.loads((one / "summary.json").read_text())["steps"]
    assert printed.count("Read ") == 3  # each split by one process, while the other waited
    written = {path.name for path in many.iterdir()}
    assert written == {path.name for path in one.iterdir()}  # by the first process alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["trainer.precision=bf16-mixed"], ["compile=true"]], ids=["bf16", "compile"]
)
def test_switches_work_with_two_processes(tmp_path, more):
    folder = tmp_path / "run"
    train(folder, tmp_path / "cache", "trainer=ddp_sim", "trainer.max_epochs=1", *more)
    losses = pd.read_csv(folder / "metrics.csv")["train/loss"].dropna()
    assert len(losses) >= 2
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_dropout_is_each_processs_own_and_yet_repeats(tmp_path):
    """Also in a run that was stopped and goes on."""

    def run(name: str, *more: str, code: int = 0) -> tuple[list[list[str]], dict]:
        train(
            tmp_path / name, tmp_path / "cache", "trainer=ddp_sim", "data.batch_size=128",
            "vae_module.encoder.dropout=0.3", "vae_module.decoder.dropout=0.3",
            "callbacks.last_checkpoint.every_n_steps=1",
            "+callbacks.probe._target_=tests.dropout_probe.DropoutProbe",
            f"+callbacks.probe.folder={tmp_path}/{name}/masks", *more, code=code,
        )  # fmt: skip
        masks = [
            (tmp_path / name / "masks" / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)
        ]
        return masks, load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]

    masks, weights = run("one")
    assert len(masks[0]) == len(masks[1]) == 10  # steps
    for first, second in zip(*masks, strict=True):
        step, *drops = first.split()
        other_step, *others = second.split()
        assert step == other_step
        assert len(drops) == len(others) > 0
        for one, other in zip(drops, others, strict=True):
            assert 0.5 < one.count("1") / len(one) < 0.9
            # masks of their own agree where both keep, or both drop: 0.7^2 + 0.3^2
            agree = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
            assert 0.4 < agree < 0.76
    assert len({line.split()[1] for each in masks for line in each}) == 20  # no two alike

    again, same = run("two")
    assert again == masks
    stopped, _ = run("three", "+callbacks.probe.stop_after=4", code=143)
    assert len(stopped[0]) < 10
    resumed, after = run("three", "resume_from=last")
    assert resumed == masks
    for name, weight in weights.items():
        assert torch.equal(weight, same[name]), name
        assert torch.equal(weight, after[name]), name
