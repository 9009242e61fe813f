"""One line, also on a terminal of 80 columns, with the time left of the whole run."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from src.callbacks import ProgressBar, progress_bar


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    state = SimpleNamespace(now=0.0, done=0.25)  # a run that continues after a quarter
    monkeypatch.setattr(progress_bar, "own_progress", lambda *_: state.done)
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: state.now)
    return state


def test_the_line(clock):
    trainer = SimpleNamespace(
        global_step=10, current_epoch=999, max_epochs=1000, sanity_checking=False,
        callback_metrics={"train/loss": 12.3456789, "val/loss": 0.00123456},
    )  # fmt: skip
    bar = ProgressBar(refresh_rate=5)
    bar.on_train_start(trainer, None)
    clock.now, clock.done = 7200.0, 0.3125
    bar.on_train_batch_end(trainer, None, None, None, 0)
    console = Console(width=80, file=io.StringIO())
    console.print(bar._bar)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("epoch 1000/1000 ")
    for words in (" 31%", "22:00:00 left", "loss 12.3", "val 0.00123"):
        assert words in line
    bar.on_train_end(trainer, None)
    assert bar._bar is None


def test_it_can_be_switched_off(clock):
    for bar in (ProgressBar(refresh_rate=0), ProgressBar()):
        if bar.refresh_rate:
            bar.disable()  # as in all processes but the first
        bar.on_train_start(SimpleNamespace(global_step=0), None)
        assert bar._bar is None
