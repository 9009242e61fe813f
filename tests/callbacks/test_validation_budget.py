"""When real runs of a module that does nothing but wait are validated."""

import time

import pytest
import torch
from lightning import Callback, LightningModule
from torch.utils.data import DataLoader

from src.callbacks import ValidationBudget
from src.utils.trainer import build_trainer

STEPS = 5  # in an epoch


class Waiting(LightningModule):
    def __init__(self, train_s: float, val_s: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_s, self.val_s = train_s, val_s

    def training_step(self, batch, batch_idx):
        time.sleep(self.train_s)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        time.sleep(self.val_s)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """Notes the steps after which validations came, and the time that they took."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.seconds = 0.0

    def on_validation_start(self, trainer, pl_module):
        self._start = time.monotonic()

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)
        self.seconds += time.monotonic() - self._start


def fit(callback, train_s=0.0, val_s=0.0, **kwargs):
    watch = Watch()
    trainer = build_trainer(
        accelerator="cpu",
        callbacks=[callback, watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )
    loader = DataLoader(torch.zeros(STEPS, 1))
    start = time.monotonic()
    trainer.fit(Waiting(train_s, val_s), loader, DataLoader(torch.zeros(1, 1)))
    return trainer, watch, time.monotonic() - start


def test_validation_keeps_to_its_share_of_the_time():
    trainer, watch, seconds = fit(ValidationBudget(0.2), 0.01, 0.1, max_epochs=40)
    assert watch.steps[0] == STEPS
    assert watch.steps[-1] == trainer.global_step == 40 * STEPS
    assert 3 <= len(watch.steps) <= 10
    assert watch.seconds / seconds < 0.35  # 0.2, and the last one, which is not optional


def test_cheap_validation_comes_after_every_epoch():
    _, watch, _ = fit(ValidationBudget(0.99), 0.05, 0.0, max_epochs=4)
    assert watch.steps == [5, 10, 15, 20]


def test_without_a_share_it_comes_after_every_epoch():
    _, watch, _ = fit(ValidationBudget(None), 0.0, 0.05, max_epochs=3)
    assert watch.steps == [5, 10, 15]


def test_a_run_that_ends_within_an_epoch_ends_with_a_validation():
    _, watch, _ = fit(ValidationBudget(0.01), 0.0, 0.02, max_steps=7)
    assert watch.steps == [5, 7]


def test_a_run_that_runs_out_of_time_ends_with_a_validation():
    trainer, watch, _ = fit(ValidationBudget(0.01), 0.02, 0.02, max_time="00:00:00:01")
    assert trainer.global_step > STEPS
    assert watch.steps == [STEPS, trainer.global_step]


def test_an_explicit_schedule_stands():
    _, watch, _ = fit(ValidationBudget(0.5), max_epochs=7, check_val_every_n_epoch=3)
    assert watch.steps == [15, 30, 35]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ValidationBudget(share)
