"""Keep libraries from saying what no user of this program can act on."""

import logging
import warnings

# of Lightning: what hardware there is (the log says which is used), and advertisements
_NOISE = (
    "GPU available", "TPU available", "HPU available", "Automatic Mixed Precision", "litlogger",
    "LitLogger", "`Trainer.fit` stopped", "Loading `train_dataloader` to estimate",
    "Tip: For seamless", "Restoring states from the checkpoint", "Restored all states",
)  # fmt: skip
_WARNINGS = (
    (r"`isinstance\(treespec, LeafSpec\)`", ".*"),
    (r"The number of training batches", ".*"),
    (r".*does not have many workers", ".*"),
)


class _NoNoise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(words in text for words in _NOISE)


def quiet_libraries() -> None:
    """Drop notes of libraries, from now on; errors and warnings about a run stay."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(each, _NoNoise) for each in logger.filters):
            logger.addFilter(_NoNoise())
    for message, module in _WARNINGS:
        warnings.filterwarnings("ignore", message, module=module)
