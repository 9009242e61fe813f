"""Training speed in real runs with known pauses."""

import csv
import time

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from src.callbacks import Throughput
from src.data.schema import CrystalBatch

PAUSE = 0.03  # seconds a training step takes
SIZES = [3, 1, 2, 2]  # crystals in each batch of an epoch


class Sleeper(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        time.sleep(PAUSE)
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        time.sleep(3 * PAUSE)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SlowCheckpoint(Checkpoint):
    """Lightning calls checkpoints after all other callbacks."""

    def on_validation_end(self, trainer, pl_module):
        time.sleep(3 * PAUSE)


def fit(path, throughput: Throughput, callbacks: list[Callback] | None = None, **kwargs):
    batches = [CrystalBatch.for_sampling(torch.ones(n, dtype=torch.int64)) for n in SIZES]
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(path, name="", version=""),
        callbacks=[throughput, *(callbacks or [])],
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 2, "log_every_n_steps": 2, "limit_val_batches": 1, **kwargs},
    )
    loader: DataLoader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(Sleeper(), loader, loader)
    if kwargs.get("log_every_n_steps") == 0:
        assert not (path / "metrics.csv").exists()
        return {}
    with (path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/crystals_per_second"]]
    return {int(row["step"]): float(row["train/crystals_per_second"]) for row in rows}


def test_all_crystals_and_no_validation_count(tmp_path):
    throughput = Throughput()
    assert throughput.crystals_per_second == 0.0
    fit(tmp_path, throughput)
    assert throughput.crystals == 2 * sum(SIZES)
    assert 8 * PAUSE <= throughput.seconds < 8 * PAUSE + 5 * PAUSE
    assert throughput.crystals_per_second == throughput.crystals / throughput.seconds


def test_validation_and_checkpoints_within_an_epoch_do_not_count(tmp_path):
    throughput = Throughput()
    fit(tmp_path, throughput, [SlowCheckpoint()], val_check_interval=1)  # after every batch
    assert throughput.crystals == 2 * sum(SIZES)
    assert 8 * PAUSE <= throughput.seconds < 8 * PAUSE + 5 * PAUSE


def test_what_is_logged_is_of_the_steps_since_the_last_time(tmp_path):
    rates = fit(tmp_path, Throughput())
    assert sorted(rates) == [1, 3, 5, 7]  # of steps counted from 0
    for step, rate in rates.items():
        crystals = sum(SIZES[:2]) if step % 4 == 1 else sum(SIZES[2:])
        assert crystals / (2 * PAUSE) * 0.4 < rate <= crystals / (2 * PAUSE)


def test_a_run_that_logs_no_steps_has_a_speed_in_the_end(tmp_path):
    throughput = Throughput()
    fit(tmp_path, throughput, log_every_n_steps=0)
    assert throughput.crystals == 2 * sum(SIZES)


def test_accumulated_batches_count(tmp_path):
    throughput = Throughput()
    fit(tmp_path, throughput, accumulate_grad_batches=2)
    assert throughput.crystals == 2 * sum(SIZES)


def test_what_came_before_an_interruption_counts(tmp_path):
    first, second = Throughput(), Throughput()
    fit(tmp_path, first)
    second.load_state_dict(first.state_dict())
    fit(tmp_path / "again", second)
    assert second.crystals == 2 * first.crystals
    assert second.seconds > 1.8 * first.seconds
    assert first.total_seconds > first.seconds
    assert second.total_seconds > first.total_seconds + second.seconds - first.seconds
