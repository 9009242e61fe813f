"""The LightningDataModule: reads files of crystals and provides batches."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from platformdirs import user_cache_path

from src.data.dataset import CrystalDataset, load_split
from src.data.known_sets import KNOWN_SETS
from src.data.loader import CrystalLoader, EpochSampler
from src.data.parsing import MAX_ATOMIC_NUMBER, ReadOptions
from src.data.readers import (
    SPLITS,
    CsvReader,
    DataError,
    Reader,
    columns_of,
    read_properties,
)
from src.data.schema import CrystalBatch
from src.data.sources import download, needs_download
from src.data.splits import (
    SplitOptions,
    add_properties,
    drop_internal_properties,
    find_readers,
    resolve_options,
    split_crystals,
    splits_file,
)
from src.data.structures import StructureReader
from src.utils.included import find_included

log = logging.getLogger(__name__)

# Largest fraction of the free GPU memory that a data set may use to be kept there.
MAX_DEVICE_SHARE = 0.25


class DataModule(LightningDataModule):
    """Batches of crystals from a folder or file, for training, validation and test.

    Args:
        data_dir: a folder with `{train,val,test}.csv` (columns `material_id`, `cif` and
            properties), with splits in other formats or in folders (see
            `src.data.split_files.find_splits`), or anything else that
            `src.data.structures.StructureReader` reads.
        batch_size: training crystals per batch and process.
        eval_batch_size: the same for validation and test; None for `batch_size`.
        files: shell-style pattern for the names of the files to read in a folder without splits.
        properties: names of the numeric properties to keep as `CrystalBatch.y`, NaN where missing.
        property_file: a table with some of these properties and a column `material_id` or `id`.
        cell: choice of cell: see `src.data.cells.choose_cell`.
        max_num_atoms: reject crystals with more atoms; None for no limit.
        max_atomic_number: reject crystals with heavier elements.
        min_distance: reject crystals with two atoms closer than this, Å.
        max_rejected: largest fraction of crystals that may be rejected; a larger one is an error.
            None accepts any number, even if no crystal is left.
        split_by, split_ratio, split_seed, split_column, split_file: how to split crystals that do
            not come with splits: see `src.data.splits.SplitOptions`. A `splits.csv` in `data_dir`
            takes precedence over `random`.
        shuffle: shuffle the training crystals in each epoch.
        seed: seed of the shuffling.
        on_device: keep the tensors on the GPU if they fit.
        cache_dir: folder for the caches of parsed crystals; None for the user's cache folder.
        num_workers: processes that parse crystals. 0 means only the main process; None means one
            per CPU for a large split, and the main process for a small one.
        source: name of the known data set (see `KNOWN_SETS`) that belongs in `data_dir`.
        download: download the missing files of that data set, if the folder contains nothing else.
        base_url: address or folder of a mirror, with a folder for each data set; None for the
            published address.

    Raises:
        DataError: if `download` is true and `source` is not a known data set.
    """

    def __init__(
        self,
        data_dir: str | Path,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        files: str = "*.cif",
        properties: Sequence[str] = (),
        property_file: str | Path | None = None,
        cell: str = "niggli",
        max_num_atoms: int | None = None,
        max_atomic_number: int = MAX_ATOMIC_NUMBER,
        min_distance: float = 0.5,
        max_rejected: float | None = 0.1,
        split_by: str = "random",
        split_ratio: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        split_column: str | None = None,
        split_file: str | Path | None = None,
        shuffle: bool = True,
        seed: int = 0,
        on_device: bool = True,
        cache_dir: str | Path | None = None,
        num_workers: int | None = None,
        source: str | None = None,
        download: bool = False,
        base_url: str | None = None,
    ) -> None:
        super().__init__()
        self.data_dir = find_included(data_dir)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.files = files
        self.properties = (properties,) if isinstance(properties, str) else tuple(properties)
        self.property_file = Path(property_file).expanduser() if property_file else None
        self.read_options = ReadOptions(cell, max_num_atoms, max_atomic_number, min_distance)
        self.max_rejected = max_rejected
        split_file = Path(split_file).expanduser() if split_file else None
        self.split_options = SplitOptions(
            split_by, tuple(split_ratio), split_seed, split_column, split_file
        )
        self.shuffle = shuffle
        self.seed = seed
        self.on_device = on_device
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.num_workers = num_workers
        if download and source not in KNOWN_SETS:
            raise DataError(
                f"data.download=true downloads a known data set, but data.source={source} is none "
                f"of {', '.join(KNOWN_SETS)}"
            )
        self.source = source
        self.download = download
        self.base_url = base_url
        self._datasets: dict[str, CrystalDataset] = {}
        self._prepared = False
        self._unsplit: CrystalDataset | None = None  # all crystals, if they came without splits

    def dataset(self, split: str) -> CrystalDataset:
        """The crystals of `train`, `val` or `test`, in the order of their file, on the host.

        Raises:
            DataError: if there is no such split, or it cannot be read or downloaded.
        """
        if split not in self._datasets:
            self._datasets |= self._load([split])
        if split not in self._datasets:
            available = ", ".join(self._load())
            raise DataError(
                f"{self.data_dir} has no split {split!r} (it has {available}): add {split}.csv, "
                "change data.split_ratio, or choose another split"
            )
        return self._datasets[split]

    def datasets(self) -> dict[str, CrystalDataset]:
        """All splits that exist, by name, in the order train, val, test."""
        self.prepare_data()
        return {split: self._datasets[split] for split in SPLITS if split in self._datasets}

    @property
    def splits_file(self) -> Path | None:
        """The `splits.csv` of crystals that came without splits; None if they came with splits."""
        if self._unsplit is None:
            return None
        return splits_file(self._unsplit, resolve_options(self.data_dir, self.split_options))

    def rejected(self) -> list[dict[str, str]]:
        """The crystals that were rejected in the splits read so far.

        Returns:
            For each, `split` (empty if the data came without splits) and the keys of
            `CrystalDataset.rejected`.
        """
        read = self._datasets if self._unsplit is None else {"": self._unsplit}
        return [{"split": name, **row} for name, each in read.items() for row in each.rejected()]

    def prepare_data(self) -> None:
        """Download missing files and create the caches, unless this has been done before.

        Lightning calls this in one process per machine.
        """
        if not self._prepared:
            self._datasets |= self._load()
            self._prepared = True

    def _load(self, splits: Sequence[str] = SPLITS) -> dict[str, CrystalDataset]:
        """Load those of the given splits that exist; all splits if the data come without splits."""
        if self.download and self.source and needs_download(self.source, self.data_dir):
            download(self.source, self.data_dir, self.base_url)
        from_table: list[str] = []
        columns: Sequence[str] = ()
        if self.property_file:
            columns = columns_of(self.property_file)
            from_table = [name for name in self.properties if name in columns]
        from_crystals = [name for name in self.properties if name not in from_table]
        found = find_readers(self.data_dir, from_crystals, self.files, self.split_options)
        _warn_of_ignored_columns(from_table, found, self.property_file)
        options = (self.read_options, self.cache_dir, self.max_rejected, self.num_workers)
        try:
            loaded = self._read(found, options, splits)
        except DataError as error:
            if not (self.property_file and from_crystals):
                raise
            raise DataError(
                f"{error} {self.property_file} has the columns {', '.join(columns)}"
            ) from error
        if self.property_file and from_table:
            table = read_properties(self.property_file, from_table)
            for split, dataset in loaded.items():
                add_properties(dataset, table, from_table, self.property_file, split)
        return loaded

    def _read(
        self,
        found: Mapping[str, Reader] | StructureReader,
        options: tuple[Any, ...],
        splits: Sequence[str],
    ) -> dict[str, CrystalDataset]:
        if isinstance(found, StructureReader):
            self._unsplit = load_split(found, *options)
            return split_crystals(self._unsplit, found, self.split_options)
        return {
            split: drop_internal_properties(load_split(found[split], *options))
            for split in splits
            if split in found
        }

    def train_dataloader(self) -> CrystalLoader:
        return self.loader("train", shuffle=self.shuffle)

    def val_dataloader(self) -> CrystalLoader:
        return self.loader("val")

    def test_dataloader(self) -> CrystalLoader:
        return self.loader("test")

    def loader(self, split: str, shuffle: bool = False) -> CrystalLoader:
        """Batches of a split. They are on the trainer's GPU if there is one and the split fits."""
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
        """Copy a batch to the device, asynchronously and from pinned memory for a GPU."""
        if device.type == "cuda" and batch.frac_coords.device.type == "cpu":
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True)


def default_cache_dir() -> Path:
    """The default folder for the caches of parsed crystals."""
    return user_cache_path("xtal-latent") / "datasets"


def _warn_of_ignored_columns(
    names: Sequence[str], found: Mapping[str, Reader] | StructureReader, path: Path | None
) -> None:
    """Warn about columns in the crystal tables that `property_file` replaces."""
    tables = [] if isinstance(found, StructureReader) else list(found.values())
    for source in [reader.source for reader in tables if isinstance(reader, CsvReader)]:
        if names and (both := [name for name in columns_of(source) if name in names]):
            log.warning("%s are read from %s, not from the columns of %s", both, path, source)


def _fits(dataset: CrystalDataset, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.nbytes < MAX_DEVICE_SHARE * free
