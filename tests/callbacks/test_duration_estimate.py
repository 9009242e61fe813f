"""The log says once how long a run will take, and again if a validation changes that."""

import logging
import math
from datetime import timedelta
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Timer

from src.callbacks import DurationEstimate, duration_estimate

PER_EPOCH = 10


@pytest.fixture
def run(monkeypatch, caplog):
    """Run a number of steps of 2 s each, the first ones slower, with a validation after 30."""
    caplog.set_level(logging.INFO)

    def run(first=0, total=400.0, validation_s=0.0, limit_s=None, after_s=5.0) -> list[str]:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(duration_estimate.time, "monotonic", lambda: clock.now)
        timer = Timer(timedelta(seconds=limit_s)) if limit_s else None
        if timer:
            monkeypatch.setattr(timer, "time_remaining", lambda _: limit_s - clock.now)
        trainer = SimpleNamespace(
            global_step=first, estimated_stepping_batches=total, sanity_checking=False,
            callbacks=[timer] if timer else [], num_training_batches=PER_EPOCH,
            accumulate_grad_batches=1,
        )  # fmt: skip
        callback = DurationEstimate(after_s)
        callback.on_train_start(trainer, None)
        for index in range(40):
            callback.on_train_batch_start(trainer, None, None, index)
            clock.now += 30 if index < 3 else 2
            trainer.global_step += 1
            callback.on_train_batch_end(trainer, None, None, None, index)
            if index == 30:
                callback.on_validation_start(trainer, None)
                clock.now += validation_s
        return [record.getMessage() for record in caplog.records]

    return run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 3 steps of 30 s and 397 of 2 s
        ({}, ["The training will take about 15 minutes on this machine, for 40 epochs"]),
        ({"first": 200}, ["The rest of the training will take about 8 minutes on this machine, "
                          "to epoch 40"]),
        ({"validation_s": 300.0}, [
            "The training will take about 15 minutes on this machine, for 40 epochs",
            "The training will rather take about 25 minutes on this machine, for 40 epochs",
        ]),
        ({"limit_s": 200.0}, ["The training will take about 3 minutes on this machine, "
                              "for 6 epochs"]),
        ({"total": math.inf}, []),
        ({"after_s": 0.0}, []),
    ],
)  # fmt: skip
def test_what_the_log_says(run, options, expected):
    assert run(**options) == expected
