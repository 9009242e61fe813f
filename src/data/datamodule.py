"""Lightning's view of the data: files in, batches of crystals out."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from src.data.sources import download, lacks_files
from src.data.splits import (
    SplitOptions,
    add_properties,
    deal_out,
    find_readers,
    options_at,
    splits_file,
    without_marks,
)
from src.data.structures import StructureReader

log = logging.getLogger(__name__)

# A data set stays on the device if it takes less than this share of the memory that is free there.
MAX_DEVICE_SHARE = 0.25


class DataModule(LightningDataModule):
    """Crystals of a folder or file as batches for training, validation and test.

    Args:
        data_dir: a folder with `{train,val,test}.csv` (columns `material_id`, `cif` and properties;
            other formats and folders too: see `src.data.split_files.find_splits`), or anything
            that `src.data.structures.StructureReader` reads.
        batch_size: crystals in a batch, per process.
        eval_batch_size: the same for validation and test; None: as `batch_size`.
        files: which files of a folder that holds no splits are read, by their names.
        properties: names of numbers that ride along into `CrystalBatch.y`, NaN where missing.
        property_file: a table that has some of them, with a column `material_id` or `id`.
        cell: choice of cell: see `src.data.cells.choose_cell`.
        max_num_atoms: refuse larger crystals; None for no limit.
        max_atomic_number: refuse crystals with heavier elements.
        min_distance: refuse crystals with atoms closer than this, in Å.
        max_rejected: share of refused crystals above which reading a split is an error; None to
            take what there is, be it nothing.
        split_by, split_ratio, split_seed, split_column, split_file: how crystals that are in no
            split yet are dealt out: see `src.data.splits.SplitOptions`. A `splits.csv` in
            `data_dir` goes before `random`.
        shuffle: draw training crystals in random order, another one each epoch.
        seed: of that order.
        on_device: keep the tensors on the GPU where they fit.
        cache_dir: where parsed splits are kept; None: the user's cache folder.
        num_workers: processes that parse crystals, 0 for none but this one; None: one per CPU for
            a large split, none for a small one.
        source: the known data set (see `KNOWN_SETS`) that `data_dir` is the folder of.
        download: fetch what is missing of it, where the folder is not there or holds nothing else.
        base_url: where to fetch it from, a folder or an address with a folder NAME in it; None:
            from where it is published.

    Raises:
        DataError: if there is no such set, or none is named that could be fetched.
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
        self.data_dir = Path(data_dir).expanduser()
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
                f"data.download=true fetches a known set, and data.source={source} is none of "
                f"{', '.join(KNOWN_SETS)}"
            )
        self.source = source
        self.download = download
        self.base_url = base_url
        self._datasets: dict[str, CrystalDataset] = {}
        self._prepared = False
        self._whole: CrystalDataset | None = None  # what was in no split when it was read

    def dataset(self, split: str) -> CrystalDataset:
        """The crystals of `train`, `val` or `test`, in the order of their file, on the host.

        Raises:
            DataError: if the folder has no such split, or it cannot be read or fetched.
        """
        if split not in self._datasets:
            self._datasets |= self._load([split])
        if split not in self._datasets:
            there = ", ".join(self._load())
            raise DataError(
                f"{self.data_dir} has no split {split!r} (it has {there}): add {split}.csv, change "
                "data.split_ratio, or choose another split"
            )
        return self._datasets[split]

    def datasets(self) -> dict[str, CrystalDataset]:
        """All the splits that there are, by name; `train` first."""
        self.prepare_data()
        return {split: self._datasets[split] for split in SPLITS if split in self._datasets}

    @property
    def splits_file(self) -> Path | None:
        """The `splits.csv` of crystals that were in no split when they were read; else None."""
        if self._whole is None:
            return None
        return splits_file(self._whole, options_at(self.data_dir, self.split_options))

    def rejected(self) -> list[dict[str, str]]:
        """What was left out of the splits that were read so far.

        Returns:
            `split` (empty if it was rejected before there were splits) and what
            `CrystalDataset.rejected` has of each.
        """
        read = self._datasets if self._whole is None else {"": self._whole}
        return [{"split": name, **row} for name, each in read.items() for row in each.rejected()]

    def prepare_data(self) -> None:
        """Fetch what is to be fetched, and make the caches; Lightning calls this in one process
        per machine, when a caller may have done so before."""
        if not self._prepared:
            self._datasets |= self._load()
            self._prepared = True

    def _load(self, splits: Sequence[str] = SPLITS) -> dict[str, CrystalDataset]:
        """Those of these splits that there are; what is in no split yet is read as a whole."""
        if self.download and self.source and lacks_files(self.source, self.data_dir):
            download(self.source, self.data_dir, self.base_url)
        beside: list[str] = []  # properties of the property_file
        if self.property_file:
            beside = [name for name in self.properties if name in columns_of(self.property_file)]
        within = [name for name in self.properties if name not in beside]
        found = find_readers(self.data_dir, within, self.files, self.split_options)
        _say_replaced(beside, found, self.property_file)
        options = (self.read_options, self.cache_dir, self.max_rejected, self.num_workers)
        if isinstance(found, StructureReader):
            self._whole = load_split(found, *options)
            loaded = deal_out(self._whole, found, self.split_options)
        else:
            loaded = {
                split: without_marks(load_split(found[split], *options))
                for split in splits
                if split in found
            }
        if self.property_file and beside:
            table = read_properties(self.property_file, beside)
            for dataset in loaded.values():
                add_properties(dataset, table, beside, self.property_file)
        return loaded

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


def _say_replaced(
    names: Sequence[str], found: Mapping[str, Reader] | StructureReader, path: Path | None
) -> None:
    """Warn of properties that tables of crystals have, too; the file that is named goes first."""
    tables = [] if isinstance(found, StructureReader) else list(found.values())
    for source in [reader.source for reader in tables if isinstance(reader, CsvReader)]:
        if names and (both := [name for name in columns_of(source) if name in names]):
            log.warning("%s are those of %s, not the columns of %s", both, path, source)


def _fits(dataset: CrystalDataset, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.nbytes < MAX_DEVICE_SHARE * free
