"""Batches of a data set, in an order that depends only on a seed and the epoch."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.utils.errors import UserError

B = TypeVar("B", covariant=True)


class Batchable(Protocol[B]):
    """A data set that makes batches from indices."""

    def batch(self, indices: Tensor) -> B: ...


class EpochSampler:
    """The indices of each batch in an epoch, for one of `world_size` processes.

    The order depends only on `seed` and the epoch. Each batch of `batch_size * world_size` crystals
    is divided equally among the processes, so that together they take the same steps as a single
    process with that batch size.

    Args:
        num_crystals: size of the data set.
        batch_size: crystals per batch and process.
        shuffle: shuffle the crystals in each epoch.
        seed: seed of the shuffling.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        UserError: if `batch_size` is below 1.
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
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self.num_crystals = num_crystals
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order. Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        stride = self.batch_size * self.world_size
        full, rest = divmod(self.num_crystals, stride)
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[Tensor]:
        for whole in self.whole_batches():
            yield whole.tensor_split(self.world_size)[self.rank]

    def whole_batches(self) -> Iterator[Tensor]:
        """The indices of each batch, for all processes together.

        If fewer crystals than processes are left for the last batch, a process would get none.
        They are then dropped if the epoch is shuffled. Otherwise they are added to the batch
        before, so that each crystal occurs exactly once.

        Raises:
            UserError: if there are fewer crystals than processes.
        """
        if self.num_crystals < self.world_size:
            raise UserError(
                f"{self.num_crystals} crystals are too few for {self.world_size} processes: "
                "use fewer devices"
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
    """Iterates over the batches of a data set, which are made by indexing its tensors.

    Batches are on the same device as the data set. This is fast enough without worker processes.
    The position is saved in checkpoints, so that training can resume within an epoch.
    """

    def __init__(self, dataset: Batchable[B], sampler: EpochSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler  # Lightning calls its `set_epoch`
        self.batch_sampler = None  # Lightning expects this attribute if there is a sampler
        self._state = {"epoch": 0, "taken": 0}  # "taken": batches yielded in this epoch
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
        """The epoch and the position in it, which Lightning saves in checkpoints."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume: skip the batches already taken, if the next epoch iterated is the saved one."""
        self._state = self._resume = dict(state)
