"""Learning-rate factors, and the used fraction of the budget in real Lightning runs."""

import math
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, Timer
from torch.utils.data import DataLoader

from src.utils.errors import UserError
from src.utils.schedules import Constant, Schedule, WarmupCosine, own_progress, run_progress

BATCHES = 4


class Line(LightningModule):
    """Has one weight; records the progress at the start of each step, and each learning rate."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.pause = pause
        self.progress: list[float] = []
        self.rates: list[float] = []

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        self.progress.append(run_progress(self.trainer, self.global_step))
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = WarmupCosine(warmup_steps=0, final_factor=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule(step, run_progress(self.trainer, step))
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def make_trainer(path, **kwargs) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def fit(path, pause=0.0, ckpt_path=None, **kwargs) -> tuple[Line, Trainer]:
    module, trainer = Line(pause), make_trainer(path, **kwargs)
    loader = DataLoader(torch.ones(BATCHES, 1), batch_size=1)  # type: ignore[arg-type, var-annotated]
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module, trainer


# Factors


def test_warmup_is_linear_and_its_first_step_is_not_lost():
    schedule = WarmupCosine(warmup_steps=4, final_factor=0.01)
    assert [schedule(step, 0.0) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert WarmupCosine(warmup_steps=0)(0, 0.0) == 1


def test_cosine_at_start_middle_and_end():
    schedule = WarmupCosine(warmup_steps=0, final_factor=0.1)
    at = [schedule(9, progress) for progress in (0.0, 1 / 3, 0.5, 1.0)]
    assert at == pytest.approx([1.0, 0.1 + 0.9 * 0.75, 0.55, 0.1])


def test_progress_outside_its_range_is_cut():
    schedule = WarmupCosine(warmup_steps=0, final_factor=0.1)
    assert schedule(0, -0.5) == 1.0
    assert schedule(0, 1.5) == pytest.approx(0.1)


def test_it_rises_through_the_warmup_and_falls_after():
    schedule = WarmupCosine(warmup_steps=20, final_factor=0.01)
    factors = [schedule(step, step / 1000) for step in range(1001)]
    peak = factors.index(max(factors))
    assert 18 <= peak <= 21
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)


def test_constant():
    schedule = Constant(warmup_steps=1)
    assert [schedule(step, progress) for step, progress in [(0, 0), (1, 0.5), (9, 1)]] == [
        0.5,
        1,
        1,
    ]
    assert Constant()(0, 1.0) == 1.0


def test_schedule_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Schedule()  # type: ignore[abstract]


# Progress


def test_max_steps(tmp_path):
    module, _ = fit(tmp_path, max_steps=8)
    assert module.progress == [step / 8 for step in range(8)]
    expected = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert module.rates == pytest.approx(expected)


def test_max_epochs(tmp_path):
    module, _ = fit(tmp_path, max_epochs=3)
    assert module.progress == pytest.approx([step / 12 for step in range(12)])


def test_the_first_of_epochs_and_steps(tmp_path):
    module, _ = fit(tmp_path, max_epochs=2, max_steps=100)
    assert module.progress == pytest.approx([step / 8 for step in range(8)])
    module, _ = fit(tmp_path, max_epochs=100, max_steps=5)
    assert module.progress == pytest.approx([step / 5 for step in range(5)])


def test_accumulated_batches_count_as_one_step(tmp_path):
    module, _ = fit(tmp_path, max_epochs=2, accumulate_grad_batches=2)
    assert module.progress == pytest.approx([0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])


def test_max_time_ends_the_run_with_all_of_it_used(tmp_path):
    limit = timedelta(seconds=0.5)
    module, trainer = fit(tmp_path, pause=0.02, max_epochs=-1, max_time=limit)
    assert 5 < len(module.progress) <= 25
    assert module.progress == sorted(module.progress)
    assert module.progress[0] < 0.3  # the pause before it is noted, on a busy machine
    assert module.progress[-1] > 0.8
    assert run_progress(trainer, trainer.global_step) == 1.0
    middle = min(module.rates, key=lambda rate: abs(rate - 0.5))
    assert middle == pytest.approx(0.5, abs=0.3)
    assert module.rates[-1] < 0.3


def test_the_first_of_time_and_steps(tmp_path):
    ample = timedelta(hours=1)
    module, _ = fit(tmp_path, max_steps=8, max_epochs=-1, max_time=ample)
    assert module.progress == pytest.approx([step / 8 for step in range(8)], abs=1e-3)
    module, _ = fit(tmp_path, pause=0.02, max_steps=10**6, max_time=timedelta(seconds=0.3))
    assert module.progress[-1] > 0.7
    assert len(module.progress) <= 15


def test_without_a_limit_there_is_no_progress(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=-1)
    trainer.strategy.connect(Line())
    trainer.fit_loop._data_source.instance = DataLoader(torch.ones(BATCHES, 1))  # type: ignore[arg-type]
    assert run_progress(trainer, 12345) == 0.0


def test_steps_go_on_after_a_resume(tmp_path):
    path = tmp_path / "half.ckpt"
    save = LambdaCallback(
        on_train_epoch_end=lambda trainer, _: (
            trainer.save_checkpoint(path) if trainer.current_epoch == 0 else None
        )
    )
    whole, _ = fit(tmp_path, max_steps=8, callbacks=[save])
    resumed, _ = fit(tmp_path, max_steps=8, ckpt_path=path)
    assert resumed.progress == [0.5, 0.625, 0.75, 0.875]
    assert resumed.progress == whole.progress[4:]
    assert resumed.rates == whole.rates[4:]


def test_time_goes_on_after_a_resume(tmp_path):
    path = tmp_path / "half.ckpt"
    _, trainer = fit(tmp_path, pause=0.05, max_steps=6, max_time=timedelta(hours=1))
    trainer.save_checkpoint(path)
    timer = next(c for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]
    used = timer.time_elapsed("train")
    assert used > 0.3

    module, _ = fit(tmp_path, pause=0.02, ckpt_path=path, max_time=timedelta(seconds=used + 0.4))
    assert module.progress[0] >= used / (used + 0.4)
    assert module.progress == sorted(module.progress)
    assert module.progress[-1] > 0.8


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_agree_on_the_time(rank):
    timer = Timer(duration=timedelta(seconds=100))
    timer._offset = 30.0 + rank  # each process has a clock of its own
    trainer = SimpleNamespace(
        estimated_stepping_batches=1000,
        callbacks=[timer],
        world_size=2,
        strategy=SimpleNamespace(broadcast=lambda value: 0.30),
    )
    assert run_progress(trainer, 10) == 0.30  # type: ignore[arg-type]
    # the progress bar asks in one process only, where a broadcast would wait for ever
    assert own_progress(trainer, 10) == pytest.approx(0.30 + rank / 100, abs=0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [Constant, WarmupCosine])
def test_a_negative_warm_up_is_refused(cls):
    with pytest.raises(UserError, match="warmup_steps must be at least 0, not -1"):
        cls(warmup_steps=-1)
