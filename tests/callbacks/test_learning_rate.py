"""The learning rate is logged, and a run without loggers works too."""

import csv

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from src.callbacks import LearningRate
from src.utils.trainer import build_trainer


class Halving(LightningModule):
    """The learning rate starts at 1 and is halved at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(path, logger, **arguments) -> None:
    trainer = build_trainer(
        accelerator="cpu",
        default_root_dir=path,
        callbacks=[LearningRate(**arguments)],
        logger=logger,
        log_every_n_steps=1,
        max_epochs=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Halving(), DataLoader(torch.zeros(2, 1)))


@pytest.mark.parametrize(("interval", "expected"), [("step", [1, 0.5, 0.25, 0.125]),
                                                    ("epoch", [1, 0.25])])  # fmt: skip
def test_it_is_logged(tmp_path, interval, expected):
    fit(tmp_path, CSVLogger(tmp_path, name="", version=""), logging_interval=interval)
    with (tmp_path / "metrics.csv").open() as file:
        assert [float(row["lr-SGD"]) for row in csv.DictReader(file)] == expected


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
def test_a_run_without_a_logger_goes_on_without(tmp_path, interval):
    fit(tmp_path, False, logging_interval=interval)
    assert list(tmp_path.iterdir()) == []
