"""The checkpoint from which a run resumes without a trace, and the signals that stop a run."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from src.callbacks.every_n_epochs import look_every_n_steps
from src.utils.again import how_to_continue
from src.utils.checkpoints import LAST

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)  # how Python begins


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which an interrupted run can resume.

    It is written after each validation, every `every_n_steps` steps, when the run ends, and on
    SIGTERM, SIGUSR1 or SIGINT (Ctrl-C). On a signal, the current step is completed first, and the
    process then exits with 128 plus the signal number (143, 138 or 130), as is usual in a shell.
    Under Slurm, SIGUSR1 (`sbatch --signal=USR1@120`) also requeues the job. A second Ctrl-C ends
    the process at once, without saving.

    Loggers are flushed to disk before the checkpoint is written. Place this callback after all
    callbacks whose state the checkpoint should contain, including other checkpoint callbacks.

    Args:
        dirpath: the folder of `last.ckpt`.
        every_n_steps: the maximum number of steps that a killed run loses; 0: all since the last
            validation.
    """

    def __init__(self, dirpath: str | Path, every_n_steps: int = 1000) -> None:
        self.path = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self._received = 0  # signal received by this process
        self._signal = 0  # signal that all processes know of
        self._step = 0  # the last completed step
        self._saved = 0  # the step of the last checkpoint
        self._validated = False  # since the last checkpoint
        self._loops: dict[str, Any] | None = None  # state of the loops after a step in an epoch

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let Lightning find the best checkpoint of a run whose folder was moved."""
        here = self.path.resolve().parent
        if trainer.ckpt_path is None or Path(trainer.ckpt_path).resolve().parent != here:
            return  # the checkpoint of another run
        for state in checkpoint["callbacks"].values():
            if "dirpath" in state and "best_k_models" in state:
                moved = {
                    name: str(here / Path(value).name)
                    for name, value in state.items()
                    if name.endswith("_path") and value
                }
                best = {str(here / Path(k).name): v for k, v in state["best_k_models"].items()}
                state.update(moved, dirpath=str(here), best_k_models=best)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = self._saved = trainer.global_step
        # These replace Lightning's handlers: one exits with 0, the other (under Slurm) saves in the
        # middle of a step. Lightning restores the original handlers when the fit ends.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step or trainer.is_last_batch:
            return  # still accumulating gradients, or `on_train_epoch_end` follows
        self._step = trainer.global_step
        # Exchange signals only at steps where processes wait for each other anyway.
        asks = trainer.world_size == 1 or self._step % look_every_n_steps(trainer) == 0
        told = asks and self._is_told(trainer)
        if told or self._is_due(trainer) or self._is_ending(trainer):
            # Lightning logs this step after this hook, so write the checkpoint when the next step
            # begins; only the state of the loops has changed by then.
            self._loops = trainer._checkpoint_connector._get_loops_state_dict()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._loops is not None:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        told = self._is_told(trainer)
        ending = self._is_ending(trainer) or trainer.current_epoch + 1 == trainer.max_epochs
        if told or ending or self._validated or self._is_due(trainer):
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_told(trainer):
            self._exit(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return 0 < self.every_n_steps <= trainer.global_step - self._saved

    @staticmethod
    def _is_ending(trainer: Trainer) -> bool:
        return trainer.should_stop or trainer.global_step == trainer.max_steps

    def _is_told(self, trainer: Trainer) -> bool:
        """Whether any process has received a signal."""
        self._signal = self._received
        if trainer.world_size > 1:
            own = torch.tensor(self._received, device=trainer.strategy.root_device)
            self._signal = int(trainer.strategy.reduce(own, reduce_op="max"))
        return self._signal > 0

    def _write(self, trainer: Trainer) -> None:
        loops, self._loops = self._loops, None
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if loops is not None:  # also if the run ends within an epoch, so it can resume there
            state["loops"] = loops
        for logger in trainer.loggers:
            logger.save()
        trainer.strategy.save_checkpoint(state, self.path)
        trainer.strategy.barrier()
        self._saved, self._validated = trainer.global_step, False
        if self._signal:
            self._exit(trainer)

    def heed_late_signal(self) -> None:
        """Exit if a signal arrived after the last step. Call this after the fit.

        Until the fit returns, Lightning is still cleaning up, and a signal is only recorded.

        Raises:
            SystemExit: if a signal arrived.
        """
        if self._received:
            _end(self._received, self.path.parents[1])

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                raise SystemExit(128 + number)
            log.warning("Ctrl-C: saving after this step (once more: stop without saving)")
        self._received = number

    def _exit(self, trainer: Trainer) -> NoReturn:
        log.warning(
            "%s: stopped after step %d, saved in %s; %s",
            _name(self._signal), self._saved, self.path, how_to_continue(self.path.parents[1]),
        )  # fmt: skip
        if (
            self._signal == signal.SIGUSR1
            and trainer.is_global_zero
            and "SLURM_JOB_ID" in os.environ
        ):
            requeue()
        trainer.strategy.barrier()
        raise SystemExit(128 + self._signal)


class StopWhenTold:
    """Makes SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) end a run immediately, outside its training steps.

    The exit codes are those of `LastCheckpoint`, which has its own handlers during training. As
    there, SIGUSR1 requeues a Slurm job.

    Slurm kills the job two minutes after SIGUSR1, or sooner, and reading the data, or matching
    crystals after the last step, may take longer than that. If the signal were ignored, the run
    would be killed without results and would not be requeued. Once requeued, it finds the
    checkpoint of its last step, trains no further, and has the whole time of a new job for the
    matching. Matching that was already done is lost.

    Only default handlers are replaced, and only in the main thread.

    Args:
        active: whether the run can be resumed at all.
        folder: of the run, to say how to continue it.
    """

    def __init__(self, active: bool = True, folder: str | Path | None = None) -> None:
        self.active = active
        self.folder = folder
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if self.active and threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._replaced = {n: handler for n, handler in handlers.items() if handler in UNHANDLED}
        for number in self._replaced:
            signal.signal(number, self._stop)
        return self

    def is_done(self) -> None:
        """Ignore SIGUSR1 from now on: the run has its results and needs no other job."""
        if signal.SIGUSR1 in self._replaced:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> NoReturn:
        for each in SIGNALS:  # a second signal would interrupt the cleanup after the first
            signal.signal(each, signal.SIG_IGN)
        _end(number, self.folder)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _end(number: int, folder: str | Path | None) -> NoReturn:
    then = how_to_continue(folder) if folder else "resume_from=last continues"
    log.warning(
        "%s: stopped before the first or after the last training step, so nothing is saved beyond "
        "the last checkpoint, if there is one; %s",
        _name(number),
        then,
    )
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if number == signal.SIGUSR1 and first and "SLURM_JOB_ID" in os.environ:
        requeue()
    raise SystemExit(128 + number)


def requeue() -> None:
    """Put this Slurm job back into the queue."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.error("Job %s could not be requeued: %s", job, error)
    else:
        log.info("Job %s is back in the queue", job)
