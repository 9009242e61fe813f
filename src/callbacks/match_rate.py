"""Structure matching during training, outside the LightningModule."""

import logging
import time

import torch
from lightning import Callback, LightningModule, Trainer

from src.metrics.evaluate import match_batches, reconstruct_batches
from src.metrics.matching import CDVAE, MatcherPool

log = logging.getLogger(__name__)


class MatchRate(Callback):
    """Every so many epochs, match reconstructions of the first validation crystals.

    Logs `val/match_rate` and `val/rmse` (CDVAE's settings). Matching runs in worker processes with
    a time limit per pair, from the first process of a distributed run alone.

    Args:
        every_n_epochs: how often; 0 for never.
        num_crystals: how many.
        num_workers: processes; None: one per CPU, 0: in this process and without a limit.
        timeout: seconds that one pair may take.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        num_crystals: int = 256,
        num_workers: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_crystals = num_crystals
        self.pool = MatcherPool(num_workers, timeout=timeout)
        self._next_epoch = every_n_epochs  # the first validation from there on is due

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs and epoch >= self._next_epoch and not trainer.sanity_checking
        if not due:
            return
        self._next_epoch = epoch + self.every_n_epochs
        if not trainer.is_global_zero:
            return
        start = time.monotonic()
        dataset = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        indices = torch.arange(min(self.num_crystals, len(dataset)))
        pairs = reconstruct_batches(pl_module, [dataset.batch(indices)])
        (summary,) = match_batches(*pairs, self.pool, [CDVAE])
        pl_module.log_dict(
            {"val/match_rate": summary.match_rate, "val/rmse": summary.rmse}, rank_zero_only=True
        )
        log.info(
            "epoch %d: match rate %.1f %%, RMSE %.4f on %d validation crystals (%.1f s)",
            epoch,
            100 * summary.match_rate,
            summary.rmse,
            summary.num_pairs,
            time.monotonic() - start,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.pool.close()
