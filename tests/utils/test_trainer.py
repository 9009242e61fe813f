"""The Trainer's precision follows the hardware; everything else passes through."""

import logging

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from src.utils.checkpoints import AtomicCheckpointIO
from src.utils.errors import UserError
from src.utils.trainer import build_trainer
from tests.utils.test_precision import cpu_precision


def test_auto_follows_the_cpu(tmp_path):
    trainer = build_trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
    assert trainer.precision == cpu_precision()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_an_explicit_precision_stays(tmp_path, precision):
    trainer = build_trainer(precision, accelerator="cpu", default_root_dir=tmp_path, logger=False)
    assert trainer.precision == precision


def test_all_arguments_pass_through(tmp_path):
    callback, logger = Callback(), CSVLogger(tmp_path)
    trainer = build_trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        max_epochs=7,
        max_steps=11,
        max_time="00:01:00:00",
        accumulate_grad_batches=3,
        gradient_clip_val=0.25,
        check_val_every_n_epoch=5,
        log_every_n_steps=13,
        num_sanity_val_steps=0,
        callbacks=[callback],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert (trainer.max_epochs, trainer.max_steps) == (7, 11)
    assert (trainer.accumulate_grad_batches, trainer.gradient_clip_val) == (3, 0.25)
    assert (trainer.check_val_every_n_epoch, trainer.log_every_n_steps) == (5, 13)  # type: ignore[attr-defined]
    assert trainer.num_sanity_val_steps == 0
    assert trainer.default_root_dir == str(tmp_path)
    assert callback in trainer.callbacks  # type: ignore[attr-defined]
    assert trainer.loggers == [logger]
    assert any(type(c).__name__ == "Timer" for c in trainer.callbacks)  # type: ignore[attr-defined]


def test_an_unknown_argument_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="max_epoch"):
        build_trainer(default_root_dir=tmp_path, max_epoch=1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            {"accumulate_grad_batches": 0},
            "trainer.accumulate_grad_batches must be at least 1, not 0",
        ),
        (
            {"check_val_every_n_epoch": 0},
            "trainer.check_val_every_n_epoch must be at least 1, not 0",
        ),
        ({"log_every_n_steps": -1}, "trainer.log_every_n_steps must be at least 0, not -1"),
        ({"max_time": "soon"}, "trainer.max_time=soon is not a time: write seconds, 5min"),
    ],
)
def test_numbers_by_which_lightning_would_divide_are_refused(tmp_path, argument, message):
    with pytest.raises(UserError, match=message):
        build_trainer(default_root_dir=tmp_path, **argument)


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path):
    trainer = build_trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


def test_messages_of_lightning_appear_once(tmp_path):
    own = logging.getLogger("lightning")
    handlers = own.handlers[:]
    try:
        own.addHandler(logging.StreamHandler())
        build_trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
        assert not own.handlers  # pytest has handlers of its own, as the program has
    finally:
        own.handlers[:] = handlers
