"""When validations happen in real runs of a module that only lets time pass."""

import time
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule
from torch.utils.data import DataLoader

from src.callbacks import ValidationBudget
from src.utils.trainer import build_trainer

STEPS = 5  # in an epoch


class Clock:
    """Time that passes only when a step advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(monotonic=clock.monotonic)
    monkeypatch.setattr("src.callbacks.validation_budget.time", fake)
    return clock


class Waiting(LightningModule):
    def __init__(self, clock: Clock, train_s: float, val_s: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock, self.train_s, self.val_s = clock, train_s, val_s

    def training_step(self, batch, batch_idx):
        self.clock.now += self.train_s
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.clock.now += self.val_s

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """Records the steps after which validations happened."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def fit(clock, callback, train_s=0.0, val_s=0.0, more=(), **kwargs):
    watch = Watch()
    trainer = build_trainer(
        accelerator="cpu",
        callbacks=[callback, watch, *more],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )
    loader = DataLoader(torch.zeros(STEPS, 1))
    trainer.fit(Waiting(clock, train_s, val_s), loader, DataLoader(torch.zeros(1, 1)))
    return trainer, watch.steps


def test_validation_keeps_to_its_share_of_the_time(clock):
    # an epoch takes half as long as a validation, which eight epochs pay for at a fifth of the time
    trainer, steps = fit(clock, ValidationBudget(0.2), 0.125, 1.25, max_epochs=40)
    epochs = [step // STEPS for step in steps]
    assert epochs == [1, 10, 19, 28, 37, 40]  # due at the start of an epoch, done at its end
    assert steps[-1] == trainer.global_step
    assert len(steps) * 1.25 / clock.now < 0.25  # 0.2, and the last one, which is not optional


def test_cheap_validation_comes_after_every_epoch(clock):
    _, steps = fit(clock, ValidationBudget(0.9), 0.1, 0.0, max_epochs=4)
    assert steps == [5, 10, 15, 20]


def test_without_a_share_it_comes_after_every_epoch(clock):
    _, steps = fit(clock, ValidationBudget(None), 0.0, 1.0, max_epochs=3)
    assert steps == [5, 10, 15]


def test_a_run_that_ends_within_an_epoch_ends_with_a_validation(clock):
    _, steps = fit(clock, ValidationBudget(0.01), 0.1, 1.0, max_steps=7)
    assert steps == [5, 7]


def test_a_run_that_runs_out_of_time_ends_with_a_validation(clock):
    class Slow(Callback):
        def on_train_batch_end(self, *args):
            time.sleep(0.02)  # Lightning's timer has a clock of its own

    trainer, steps = fit(
        clock, ValidationBudget(0.01), 0.1, 1e6, max_time="00:00:00:01", more=[Slow()]
    )
    assert trainer.global_step > STEPS
    assert steps == [STEPS, trainer.global_step]


def test_an_explicit_schedule_stands(clock):
    _, steps = fit(clock, ValidationBudget(0.5), max_epochs=7, check_val_every_n_epoch=3)
    assert steps == [15, 30, 35]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ValidationBudget(share)
