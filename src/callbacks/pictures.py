"""Pictures of reconstructed or generated crystals during training."""

from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from src.callbacks.every_n_epochs import NEVER, EveryNEpochs
from src.metrics.reconstruction.evaluate import reconstruct_batches
from src.report.pictures import draw_pairs, draw_strip
from src.utils.errors import UserError
from src.utils.output import new_file

RECONSTRUCTIONS, SAMPLES = "val/reconstructions", "val/samples"  # names in the loggers


class ReconstructionPictures(EveryNEpochs):
    """Draws the first validation crystals above their reconstructions every few epochs.

    The pictures go to W&B and TensorBoard as `val/reconstructions`, and for the CSV logger to
    `pictures/epoch_0050.png` in its folder. In a distributed run, only the first process does it.

    Args:
        every_n_epochs: how often; 0 for never.
        num_crystals: how many, at least 1.

    Raises:
        UserError: if `num_crystals` is less than 1.
    """

    def __init__(self, every_n_epochs: int = 50, num_crystals: int = 6) -> None:
        super().__init__(every_n_epochs)
        if num_crystals < 1:
            raise UserError(f"num_crystals must be at least 1, not {num_crystals}; {NEVER}")
        self.num_crystals = num_crystals

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer) or not trainer.is_global_zero or not trainer.loggers:
            return
        epoch = trainer.current_epoch + 1
        dataset = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        indices = torch.arange(min(self.num_crystals, len(dataset)))
        (originals,), (reconstructions,) = reconstruct_batches(pl_module, [dataset.batch(indices)])
        figure = draw_pairs(
            originals.to_atoms(), reconstructions.to_atoms(), title=f"Validation, epoch {epoch}"
        )
        for logger in trainer.loggers:
            _log(logger, RECONSTRUCTIONS, figure, epoch, trainer.global_step)


class SamplePictures(EveryNEpochs):
    """Every so many epochs, generates crystals with a latent diffusion model and draws them.

    They have as many atoms as the first validation crystals or, for structure prediction, their
    compositions, and are made of the same noise every time. They go to the loggers as those of
    `ReconstructionPictures` do, under `val/samples`.

    Args:
        every_n_epochs: how often; 0 for never.
        num_crystals: how many, at least 1.
        sampling_steps: see `LDMModule.sample`.

    Raises:
        UserError: if `num_crystals` is less than 1.
    """

    def __init__(
        self, every_n_epochs: int = 50, num_crystals: int = 6, sampling_steps: int = 50
    ) -> None:
        super().__init__(every_n_epochs)
        if num_crystals < 1:
            raise UserError(f"num_crystals must be at least 1, not {num_crystals}; {NEVER}")
        self.num_crystals = num_crystals
        self.sampling_steps = sampling_steps

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer) or not trainer.is_global_zero or not trainer.loggers:
            return
        dataset = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        request = dataset.batch(torch.arange(min(self.num_crystals, len(dataset))))
        generator = torch.Generator(pl_module.device).manual_seed(0)
        how = {"sampling_steps": self.sampling_steps, "generator": generator}
        figure = draw_strip(pl_module.sample(request, return_atoms=True, **how))  # type: ignore[operator]
        for logger in trainer.loggers:
            _log(logger, SAMPLES, figure, trainer.current_epoch + 1, trainer.global_step)


def _log(logger: Logger, key: str, figure: Figure, epoch: int, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [figure], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(key, figure, step, close=False)
    elif isinstance(logger, CSVLogger):
        path = Path(logger.log_dir) / "pictures" / f"epoch_{epoch:04d}.png"
        with new_file(path, overwrite=True) as partial:
            figure.savefig(partial, dpi=120)
