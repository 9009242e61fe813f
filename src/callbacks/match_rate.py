"""Structure matching during training, outside the LightningModule."""

import logging
import time

import torch
from lightning import LightningModule, Trainer

from src.callbacks.every_n_epochs import NEVER, EveryNEpochs
from src.metrics.matching import CDVAE, MatcherPool, summarize
from src.metrics.reconstruction.evaluate import match_batches, reconstruct_batches
from src.utils.errors import UserError

log = logging.getLogger(__name__)


class MatchRate(EveryNEpochs):
    """Every so many epochs, match reconstructions of the first validation crystals.

    Logs `val/match_rate` and `val/rmse` (CDVAE's settings). Matching runs in worker processes with
    a time limit per pair, from the first process of a distributed run alone.

    Args:
        every_n_epochs: how often; 0 for never.
        num_crystals: how many, at least 1.
        num_workers: processes; None: one per CPU, 0: in this process and without a limit.
        timeout: seconds that one pair may take.

    Raises:
        UserError: if `num_crystals` is less than 1.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        num_crystals: int = 256,
        num_workers: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(every_n_epochs)
        if num_crystals < 1:
            raise UserError(f"num_crystals must be at least 1, not {num_crystals}; {NEVER}")
        self.num_crystals = num_crystals
        self.pool = MatcherPool(num_workers, timeout=timeout)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer) or not trainer.is_global_zero:
            return
        start = time.monotonic()
        dataset = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        indices = torch.arange(min(self.num_crystals, len(dataset)))
        pairs = reconstruct_batches(pl_module, [dataset.batch(indices)])
        (results,) = match_batches(*pairs, self.pool, [CDVAE])
        summary = summarize(results, CDVAE)
        pl_module.log_dict(
            {"val/match_rate": summary.match_rate, "val/rmse": summary.rmse}, rank_zero_only=True
        )
        log.info(
            "epoch %d: match rate %.1f %%, RMSE %.4f on %d validation crystals (%.1f s)",
            trainer.current_epoch + 1,
            100 * summary.match_rate,
            summary.rmse,
            summary.num_pairs,
            time.monotonic() - start,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.pool.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.pool.close()  # there will be no teardown
