"""Structure matching during training, outside the LightningModule."""

import logging
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer

from src.callbacks.every_n_epochs import NEVER, EveryNEpochs
from src.metrics.matching import CDVAE, FastMatcher, open_matcher, summarize
from src.metrics.reconstruction.evaluate import match_batches, reconstruct_batches
from src.metrics.structure_matching.search import warm_up
from src.utils.errors import UserError

log = logging.getLogger(__name__)

_BATCH_SIZE = 256


class MatchRate(EveryNEpochs):
    """Every so many epochs, match reconstructions of validation crystals.

    Logs `val/match_rate` and `val/rmse` (CDVAE's settings), from the first process of a distributed
    run alone. A validation that is due is passed over if it would cost more than its share of the
    time so far; the first never is.

    Args:
        every_n_epochs: how often; 0 for never.
        num_crystals: how many, at least 1, from the start of the split; None for all.
        max_share: of the time of the run; None for no limit.
        matcher, num_workers, timeout: see `open_matcher`.

    Raises:
        UserError: if `num_crystals` is less than 1, `max_share` is not between 0 and 1, or there is
            no such matcher.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_crystals: int | None = None,
        max_share: float | None = 0.02,
        matcher: str = "fast",
        num_workers: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(every_n_epochs)
        if num_crystals is not None and num_crystals < 1:
            raise UserError(f"num_crystals must be at least 1, not {num_crystals}; {NEVER}")
        if max_share is not None and not 0 < max_share < 1:
            raise UserError(f"max_share must be between 0 and 1, not {max_share}")
        self.num_crystals = num_crystals
        self.max_share = max_share
        self.matcher = open_matcher(matcher, num_workers, timeout)
        self._ended = -float("inf")
        self._cost = 0.0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer) or not trainer.is_global_zero:
            return
        if isinstance(self.matcher, FastMatcher):
            warm_up()  # which is no part of the cost
        start = time.monotonic()
        if self.max_share and start - self._ended < self._cost * (1 / self.max_share - 1):
            return
        loader: Any = trainer.val_dataloaders
        dataset = loader.dataset
        size = len(dataset) if self.num_crystals is None else self.num_crystals
        indices = torch.arange(min(size, len(dataset)))
        batches = (dataset.batch(part) for part in indices.split(_BATCH_SIZE))
        pairs = reconstruct_batches(pl_module, batches)
        (results,) = match_batches(*pairs, self.matcher, [CDVAE])
        self._ended = time.monotonic()
        self._cost = self._ended - start
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
            self._cost,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.matcher.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.matcher.close()  # there will be no teardown
