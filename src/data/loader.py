"""Batches of a data set in an order that a seed and an epoch decide."""

from collections.abc import Iterator

import torch
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch


class EpochSampler:
    """The indices of each batch of an epoch, for one of `world_size` processes.

    The order is a function of `seed` and epoch alone. A batch of `batch_size * world_size`
    crystals is dealt out to the processes in equal parts, so that together they take the steps
    that one process with that batch size would.
    """

    def __init__(
        self,
        num_crystals: int,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        self.num_crystals = num_crystals
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        stride = self.batch_size * self.world_size
        full, rest = divmod(self.num_crystals, stride)
        # A last batch with fewer crystals than processes would leave one of them without a step.
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_crystals, generator=generator)
        else:
            order = torch.arange(self.num_crystals)
        chunks = order.split(self.batch_size * self.world_size)
        for chunk in chunks[: len(self)]:
            yield chunk.tensor_split(self.world_size)[self.rank]


class CrystalLoader:
    """Iterates over the batches of a data set, each made by indexing its tensors.

    Where they lie on a device, so do the batches, and no worker process is needed to keep up.
    """

    def __init__(self, dataset: CrystalDataset, sampler: EpochSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler  # Lightning calls its `set_epoch`,
        self.batch_sampler = None  # and looks at this one wherever it finds a sampler
        self._state = {"epoch": 0, "taken": 0}  # batches of that epoch that were handed out
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[CrystalBatch]:
        resume, self._resume = self._resume, None
        start = 0
        if resume is not None and resume["epoch"] == self.sampler.epoch:
            start = resume["taken"]
        for position, indices in enumerate(self.sampler):
            if position >= start:
                self._state = {"epoch": self.sampler.epoch, "taken": position + 1}
                yield self.dataset.batch(indices)

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch this loader is; Lightning keeps it in checkpoints."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let that epoch, if it is the next to be iterated, go on after the batches taken."""
        self._state = self._resume = dict(state)
