"""Batches of a data set in an order that a seed and an epoch decide."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from src.data.dataset import CrystalDataset

B = TypeVar("B", covariant=True)


class Batchable(Protocol[B]):
    """What a loader iterates over: something that makes a batch of what is at some indices."""

    def batch(self, indices: Tensor) -> B: ...


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
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[Tensor]:
        for whole in self.whole_batches():
            yield whole.tensor_split(self.world_size)[self.rank]

    def whole_batches(self) -> Iterator[Tensor]:
        """The indices of each batch of all processes together.

        A rest of fewer crystals than processes would leave one of them without a batch. A
        shuffled epoch leaves it out; else the last batch takes it, so that each crystal comes once.

        Raises:
            ValueError: if there are fewer crystals than processes.
        """
        if self.num_crystals < self.world_size:
            raise ValueError(
                f"{self.num_crystals} crystals are too few for {self.world_size} processes: "
                "take fewer devices"
            )
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_crystals, generator=generator)
        else:
            order = torch.arange(self.num_crystals)
        stride = self.batch_size * self.world_size
        for position in range(len(self)):
            last = position == len(self) - 1 and not self.shuffle
            yield order[position * stride : None if last else (position + 1) * stride]


class CrystalLoader(Generic[B]):
    """Iterates over the batches of a data set, each made by indexing its tensors.

    Where they lie on a device, so do the batches, and no worker process is needed to keep up.
    """

    def __init__(self, dataset: Batchable[B], sampler: EpochSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler  # Lightning calls its `set_epoch`,
        self.batch_sampler = None  # and looks at this one wherever it finds a sampler
        self._state = {"epoch": 0, "taken": 0}  # batches of that epoch that were handed out
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[B]:
        resume, self._resume = self._resume, None
        start = 0
        if resume is not None and resume["epoch"] == self.sampler.epoch:
            start = resume["taken"]
        rank, world_size = self.sampler.rank, self.sampler.world_size
        for position, whole in enumerate(self.sampler.whole_batches()):
            if position >= start:
                self._state = {"epoch": self.sampler.epoch, "taken": position + 1}
                if world_size > 1 and isinstance(self.dataset, CrystalDataset):
                    yield self.dataset.part(whole, rank, world_size)
                else:
                    yield self.dataset.batch(whole.tensor_split(world_size)[rank])

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch this loader is; Lightning keeps it in checkpoints."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let that epoch, if it is the next to be iterated, go on after the batches taken."""
        self._state = self._resume = dict(state)
