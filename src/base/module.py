"""The part of a LightningModule that does not depend on the model."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from src.base.pretrained import TRUSTED_MODULES, PretrainedModule
from src.data import DataModule
from src.utils.config import build, to_plain
from src.utils.schedules import Schedule, run_progress

OPTIMIZER = {"_target_": "src.utils.muon.Muon"}
SCHEDULER = {"_target_": "src.utils.schedules.WarmupCosine"}


class CrystalModule(PretrainedModule):
    """Optimizer, schedule, gradient clipping, randomness and logging, for any model of crystals.

    Args:
        optimizer: config of a `torch.optim.Optimizer`, which receives the named parameters.
        scheduler: config of a `src.utils.schedules.Schedule`.
    """

    def __init__(
        self,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = to_plain(optimizer or OPTIMIZER)
        self.scheduler = to_plain(scheduler or SCHEDULER)
        # loss terms and gradient norm of the last training step, for callbacks
        self.last_step: dict[str, Tensor] = {}
        self._seed: int | None = None  # of the run
        # sums of loss and terms over the crystals since they were last logged, and their number
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0
        # what stays the same during a run; saved in checkpoints, so that a continued run can check
        self.run_record: dict[str, Any] | None = None
        self._optimizer_settings: list[dict[str, Any]] = []  # of each group of parameters

    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, DataModule):  # after a checkpoint to resume from was loaded
            self.training_set = datamodule.dataset("train").census()
            self.read_options = asdict(datamodule.read_options)

    def on_train_start(self) -> None:
        # The schedule needs the number of steps in the run, so Lightning creates the data loader
        # early. It then does not restore the loader's state when a run resumes within an epoch, so
        # restore it here.
        self.trainer.fit_loop._load_combined_loader_states()
        if self.trainer.ckpt_path is not None:
            self._restore_optimizer_settings()

    def _restore_optimizer_settings(self) -> None:
        """Let the settings of this run act again, after those of a checkpoint were loaded.

        The state of an optimizer holds its learning rate, weight decay and the like, and that of a
        schedule the base learning rates, as they were when the checkpoint was written.
        """
        (optimizer,) = self.trainer.optimizers
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        for i, settings in enumerate(self._optimizer_settings):
            lr = settings["lr"]
            scheduler.base_lrs[i] = lr
            factor = scheduler.lr_lambdas[i](scheduler.last_epoch)
            optimizer.param_groups[i].update(settings, initial_lr=lr, lr=lr * factor)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.run_record is not None:
            checkpoint["run_record"] = self.run_record
        if self._num_summed:
            sums = {name: value.cpu() for name, value in self._sums.items()}
            checkpoint["not_yet_logged"] = {"sums": sums, "crystals": self._num_summed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if waiting := checkpoint.get("not_yet_logged"):
            self._sums, self._num_summed = dict(waiting["sums"]), waiting["crystals"]

    def step_generator(self, batch_idx: int) -> torch.Generator:
        """The random generator of a training step, which depends only on the seed, step and batch.

        It is the same in all processes of a distributed run, so that what is drawn for a whole
        batch does not depend on how the batch is divided.
        """
        accumulated = self.trainer.accumulate_grad_batches
        index = self.global_step * accumulated + batch_idx % accumulated
        seed = torch.initial_seed() if self._seed is None else self._seed
        return torch.Generator(self.device).manual_seed((seed + 1_000_003 * index) % 2**63)

    def seed_dropout(self, generator: torch.Generator) -> None:
        """Seed the global random state of a training step, for layers that take no generator.

        The seed differs between the processes of a distributed run, which hold different crystals.
        """
        torch.manual_seed((generator.initial_seed() + 1 + self.global_rank) % 2**63)

    def is_logged_step(self) -> bool:
        """Whether the current training step logs."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def log_training(self, loss: Tensor, num_crystals: int) -> None:
        """Log the mean of the loss and its terms over the crystals since they were last logged.

        Call this in each training step, after `last_step` is set. A single step would depend on its
        few crystals.
        """
        if not self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        for name, value in {"loss": loss, **self.last_step}.items():
            # as a new tensor, without waiting for the device
            weighted = value.detach().float() * num_crystals
            before = self._sums.get(name)
            self._sums[name] = weighted if before is None else before.to(value.device) + weighted
        self._num_summed += num_crystals
        if self.is_logged_step():
            means = {name: value / self._num_summed for name, value in self._sums.items()}
            self.log_figures("train", means, sync_dist=True, batch_size=num_crystals)
            self._sums, self._num_summed = {}, 0

    def compile_networks(self) -> None:
        """Compile the networks (for ours, only the Transformers) in place, for any batch shape.

        Parameter names do not change. Compiling takes time at the start, so it is for long runs.
        """
        for name in self.networks:
            if (network := getattr(self, name)) is None:
                continue
            getattr(network, "transformer", network).compile(dynamic=True)

    def log_figures(self, stage: str, figures: Mapping[str, Tensor], **how: Any) -> None:
        """Log each metric as `stage/name`; `loss` is also shown in the progress bar."""
        for name, value in figures.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", **how)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        optimizer = build(self.optimizer, torch.optim.Optimizer, trained, allow=TRUSTED_MODULES)
        schedule = build(self.scheduler, Schedule, allow=TRUSTED_MODULES)  # type: ignore[type-abstract]
        self._optimizer_settings = [
            {name: group[name] for name in ("lr", *self.optimizer) if name in group}
            for group in optimizer.param_groups
        ]

        def factor(step: int) -> float:
            return schedule(step, run_progress(self.trainer, step))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip gradients with a fused optimizer in mixed precision, since that
        # would be wrong with a gradient scaler; bfloat16 has no scaler.
        if self.trainer.precision == "16-mixed" or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            if isinstance(self.trainer.strategy, FSDPStrategy):  # only it sees all the shards
                norm = self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)  # type: ignore[union-attr, operator]
            else:
                norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val, foreach=True)
            self.last_step["grad_norm"] = norm


def make_network(given: Any) -> Any:
    """Build a network from its config, or return it as given. Typed `Any` for the type checker."""
    return build(given, nn.Module) if isinstance(given, Mapping) else given
