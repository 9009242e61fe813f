"""Lightning's view of the data: a folder in, batches of crystals out."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningDataModule
from platformdirs import user_cache_path

from src.data.dataset import MAX_ATOMIC_NUMBER, CrystalDataset, ReadOptions, load_split
from src.data.loader import CrystalLoader, EpochSampler
from src.data.readers import SPLITS, DataError, find_splits
from src.data.schema import CrystalBatch

log = logging.getLogger(__name__)

# A data set stays on the device if it takes less than this share of the memory that is free there.
MAX_DEVICE_SHARE = 0.25


class DataModule(LightningDataModule):
    """Crystals of a folder as batches for training, validation and test.

    Args:
        data_dir: a folder with `{train,val,test}.csv` (or `.csv.gz`; columns `material_id`, `cif`
            and properties), or a folder with `.cif` files at any depth.
        batch_size: crystals in a batch, per process.
        eval_batch_size: the same for validation and test; None: as `batch_size`.
        properties: numeric columns that ride along into `CrystalBatch.y`.
        niggli: reduce each cell to its Niggli form.
        max_num_atoms: refuse larger crystals; None for no limit.
        max_atomic_number: refuse crystals with heavier elements.
        min_distance: refuse crystals with atoms closer than this, in Å.
        max_rejected: share of refused crystals above which reading a split is an error; None to
            take what there is, be it nothing.
        split_ratio: train, val, test, for a folder of `.cif` files.
        split_seed: of their shuffling.
        shuffle: draw training crystals in random order, another one each epoch.
        seed: of that order.
        on_device: keep the tensors on the GPU where they fit.
        cache_dir: where parsed splits are kept; None: the user's cache folder.
    """

    def __init__(
        self,
        data_dir: str | Path,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        properties: Sequence[str] = (),
        niggli: bool = True,
        max_num_atoms: int | None = None,
        max_atomic_number: int = MAX_ATOMIC_NUMBER,
        min_distance: float = 0.5,
        max_rejected: float | None = 0.1,
        split_ratio: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        on_device: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.data_dir = Path(data_dir).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.properties = tuple(properties)
        self.read_options = ReadOptions(niggli, max_num_atoms, max_atomic_number, min_distance)
        self.max_rejected = max_rejected
        self.split_ratio = tuple(split_ratio)
        self.split_seed = split_seed
        self.shuffle = shuffle
        self.seed = seed
        self.on_device = on_device
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._datasets: dict[str, CrystalDataset] = {}

    def dataset(self, split: str) -> CrystalDataset:
        """The crystals of `train`, `val` or `test`, in the order of their file, on the host.

        Raises:
            DataError: if the folder has no such split or it cannot be read.
        """
        if split not in self._datasets:
            readers = find_splits(self.data_dir, self.properties, self.split_ratio, self.split_seed)
            if split not in readers:
                raise DataError(
                    f"{self.data_dir} has no split {split!r} (it has {', '.join(readers)}): "
                    f"add {split}.csv, or choose another split"
                )
            self._datasets[split] = load_split(
                readers[split], self.read_options, self.cache_dir, self.max_rejected
            )
        return self._datasets[split]

    def datasets(self) -> dict[str, CrystalDataset]:
        """All the splits that there are, by name; `train` first."""
        self.prepare_data()
        return {split: self._datasets[split] for split in SPLITS if split in self._datasets}

    def prepare_data(self) -> None:
        """Make the caches; Lightning calls this in one process per machine."""
        readers = find_splits(self.data_dir, self.properties, self.split_ratio, self.split_seed)
        for split in SPLITS:
            if split in readers:
                self.dataset(split)

    def train_dataloader(self) -> CrystalLoader:
        return self.loader("train", shuffle=self.shuffle)

    def val_dataloader(self) -> CrystalLoader:
        return self.loader("val")

    def test_dataloader(self) -> CrystalLoader:
        return self.loader("test")

    def loader(self, split: str, shuffle: bool = False) -> CrystalLoader:
        """Batches of a split, on the trainer's device if there is one and the split fits there."""
        dataset = self.dataset(split)
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            device = self.trainer.strategy.root_device
            if self.on_device and device.type == "cuda" and _fits(dataset, device):
                dataset = dataset.to(device)
        sampler = EpochSampler(
            num_crystals=len(dataset),
            batch_size=self.batch_size if split == "train" else self.eval_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        return CrystalLoader(dataset, sampler)

    def transfer_batch_to_device(
        self, batch: CrystalBatch, device: torch.device, dataloader_idx: int
    ) -> CrystalBatch:
        """Copy without waiting: pinned memory and an asynchronous copy on a GPU."""
        if device.type == "cuda" and batch.frac_coords.device.type == "cpu":
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True)


def default_cache_dir() -> Path:
    """Where parsed splits are kept unless one says otherwise."""
    return user_cache_path("xtal-latent") / "datasets"


def _fits(dataset: CrystalDataset, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.nbytes < MAX_DEVICE_SHARE * free
