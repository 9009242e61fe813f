"""A split as a few flat tensors, which are read from its files once and cached on disk.

A cache is a folder named by a hash of everything that determines its content: the bytes of the
input, the options, the versions of the packages that read the input, and the version of the cache
format. It contains `crystals.safetensors` (memory-mapped when read), `rejected.csv` and
`manifest.json`, which is written last. It is written under a file lock to a folder with another
name, which is then renamed, so that a cache is never incomplete.
"""

import csv
import functools
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from src.data.flat import MappedTensors, TensorWriter, ragged_index, save_tensors
from src.data.packing import unpacked_name
from src.data.parsing import ParsedChunk, ReadOptions, parse, read_record
from src.data.readers import DataError, Reader, Record, is_table
from src.data.rejections import kind_of
from src.data.schema import CrystalBatch, Part
from src.utils.checksum import sha256_of

log = logging.getLogger(__name__)

FORMAT = 6  # part of the hash; increase it when the same input gives different tensors

_CIF_PACKAGES = ("gemmi", "numpy", "spglib")
_TABLE_PACKAGES = ("pandas", "pyarrow")
# newer versions of pymatgen consist mostly of pymatgen-core
_OTHER_PACKAGES = ("ase", "pymatgen", "pymatgen-core")


class CrystalDataset(Dataset):
    """Crystals as flat tensors, from which a batch is made by indexing.

    Args:
        atom_types: (N,) atomic numbers.
        frac_coords: (N, 3) fractional coordinates.
        lattices: (B, 3, 3) lattice vectors in rows, Å.
        num_atoms: (B,) number of atoms in each crystal.
        ids: IDs of the B crystals; None for their indices.
        y: properties by name, each of shape (B,).
    """

    def __init__(
        self,
        atom_types: Tensor,
        frac_coords: Tensor,
        lattices: Tensor,
        num_atoms: Tensor,
        ids: Sequence[str] | None = None,
        y: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.atom_types = atom_types
        self.frac_coords = frac_coords
        self.lattices = lattices
        self.num_atoms = num_atoms
        self.y = dict(y or {})
        self._ids = ids
        self.path: Path | None = None  # file in the cache, if loaded from there
        self._file: MappedTensors | None = None
        # Counts are also kept on the host, so that making a batch never waits for the device.
        self._host_num_atoms = num_atoms.cpu()
        self._starts = torch.nn.functional.pad(num_atoms.cumsum(0), (1, 0))[:-1]

    @classmethod
    def from_batch(cls, batch: CrystalBatch, ids: Sequence[str] | None = None) -> Self:
        """Make a data set of the crystals in a batch."""
        return cls(
            batch.atom_types, batch.frac_coords, batch.lattices, batch.num_atoms, ids, batch.y
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open the `crystals.safetensors` of a cache. Large tensors stay on disk until needed."""
        file = MappedTensors(path)
        self = cls(**file.tensors, ids=file.ids, y=file.y)
        self._file, self.path = file, path
        return self

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        names = ("atom_types", "frac_coords", "lattices", "num_atoms")
        save_tensors(path, {name: getattr(self, name) for name in names}, self.ids, self.y)

    @cached_property
    def ids(self) -> Sequence[str]:
        return [str(i) for i in range(len(self))] if self._ids is None else self._ids

    def rejected(self) -> list[dict[str, str]]:
        """The crystals that were rejected when the cache of this data set was created.

        Returns:
            `where` (file, and row or frame), `material_id` and `reason` of each, in the order of
            the input. Empty if the data set was not loaded from a cache.
        """
        if self.path is None:
            return []
        with self.path.with_name("rejected.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def nbytes(self) -> int:
        """Memory that the tensors use on a device, in bytes."""
        tensors = (self.atom_types, self.frac_coords, self.lattices, self.num_atoms)
        return sum(t.nbytes for t in (*tensors, *self.y.values()))

    def census(self) -> dict[str, Any]:
        """Counts of crystals and atoms, as plain types with string keys.

        Returns:
            `num_crystals`, `num_atoms` (number of crystals for each number of atoms) and `elements`
            (number of atoms for each atomic number).
        """
        return {
            "num_crystals": len(self),
            "num_atoms": _count(self._host_num_atoms),
            "elements": _count(self.atom_types),
        }

    def __len__(self) -> int:
        return len(self.num_atoms)

    def __getitem__(self, index: int) -> Data:
        """Crystal `index` as a PyG `Data`, for code that collates these; `batch` is faster."""
        return self.batch(torch.tensor([range(len(self))[index]])).get_example(0)

    def batch(self, indices: Tensor, part: Part | None = None) -> CrystalBatch:
        """Make a batch of the crystals at `indices`, in that order.

        On a GPU, this launches a few kernels without synchronizing.

        Args:
            indices: (b,) int64, on the host.
            part: which part of a step's batch this is, if several processes share one.
        """
        counts = self._host_num_atoms[indices]
        if self._file is not None and self._file.is_large:
            return self._read(self._file, indices, counts, part)
        index = indices.to(self.frac_coords.device, non_blocking=True)
        num_atoms = self.num_atoms[index].long()
        atoms = ragged_index(self._starts[index], num_atoms, int(counts.sum()))
        return CrystalBatch.from_tensors(
            self.atom_types[atoms].long(),
            self.frac_coords[atoms],
            self.lattices[index],
            num_atoms,
            y={name: value[index] for name, value in self.y.items()},
            max_num_atoms=int(counts.max()) if len(counts) else 0,
            part=part,
        )

    def _read(
        self, file: MappedTensors, indices: Tensor, counts: Tensor, part: Part | None
    ) -> CrystalBatch:
        starts = self._starts[indices]
        return CrystalBatch.from_tensors(
            file.rows("atom_types", starts, counts).long(),
            file.rows("frac_coords", starts, counts),
            file.rows("lattices", indices, torch.ones_like(indices)),
            counts.long(),
            y={name: value[indices] for name, value in self.y.items()},
            max_num_atoms=int(counts.max()) if len(counts) else 0,
            part=part,
        )

    def part(self, whole: Tensor, rank: int, world_size: int) -> CrystalBatch:
        """The part for process `rank` of a batch that several processes share.

        Args:
            whole: the indices of all crystals in the batch.
        """
        indices = whole.tensor_split(world_size)
        counts = [int(self._host_num_atoms[part].sum()) for part in indices]
        part = Part(
            first_atom=sum(counts[:rank]),
            first_crystal=sum(map(len, indices[:rank])),
            num_atoms=sum(counts),
            num_crystals=len(whole),
            num_parts=world_size,
        )
        return self.batch(indices[rank], part)

    def subset(self, indices: Tensor) -> "CrystalDataset":
        """Make a data set of the crystals at `indices` ((b,) int64, on the host)."""
        batch = self.batch(indices)
        return CrystalDataset(
            batch.atom_types.to(self.atom_types.dtype),
            batch.frac_coords,
            batch.lattices,
            batch.num_atoms.to(self.num_atoms.dtype),
            [self.ids[i] for i in indices.tolist()],
            batch.y,
        )

    def to(self, device: torch.device | str) -> "CrystalDataset":
        """The same crystals with their tensors on `device`."""
        return CrystalDataset(
            self.atom_types.to(device),
            self.frac_coords.to(device),
            self.lattices.to(device),
            self.num_atoms.to(device),
            self._ids,
            {name: value.to(device) for name, value in self.y.items()},
        )


def _count(values: Tensor) -> dict[str, int]:
    unique, counts = values.unique(return_counts=True)
    return dict(zip(map(str, unique.tolist()), counts.tolist(), strict=True))


def read_crystals(
    records: Reader,
    options: ReadOptions,
    progress: str | None = None,
    num_workers: int | None = 0,
) -> tuple[CrystalDataset, list[tuple[Record, str]]]:
    """Read records into a data set in memory, without a cache.

    Args:
        progress: title of the progress bar; None for no bar.
        num_workers: see `parse`.

    Returns:
        The crystals, and each rejected record with the reason.
    """
    parts = list(_parse(records, options, progress, num_workers))
    tensors = [_tensors(part) for part in parts]
    names = records.properties
    y = torch.cat([torch.from_numpy(part.properties) for part in parts])
    dataset = CrystalDataset(
        **{name: torch.cat([part[name] for part in tensors]) for name in tensors[0]},
        ids=[id_ for part in parts for id_ in part.ids],
        y={name: y[:, i].clone() for i, name in enumerate(names)},
    )
    return dataset, [each for part in parts for each in part.rejected]


def _parse(
    records: Reader, options: ReadOptions, progress: str | None, num_workers: int | None
) -> Iterator[ParsedChunk]:
    """`parse` with a progress bar."""
    columns = (TextColumn("{task.description}"), SpinnerColumn(),
               TextColumn("{task.completed:,} crystals"), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, transient=True, disable=progress is None) as bar:
        task = bar.add_task(progress or "", total=None)
        read = functools.partial(read_record, options=options)
        for part in parse(records, read, num_workers, len(records.properties)):
            yield part
            bar.advance(task, len(part.ids) + len(part.rejected))


def _tensors(part: ParsedChunk) -> dict[str, Tensor]:
    names = ("atom_types", "frac_coords", "lattices", "num_atoms")
    return {name: torch.from_numpy(getattr(part, name)) for name in names}


def load_split(
    reader: Reader,
    options: ReadOptions,
    cache_dir: Path,
    max_rejected: float | None = 0.1,
    num_workers: int | None = None,
) -> CrystalDataset:
    """Load the crystals of one split from its cache, which is created if it does not exist.

    Can be called by several processes at once: one creates the cache while the others wait. An
    existing cache can be used without write permission. The memory for creating a cache does not
    grow with the number of crystals.

    Args:
        max_rejected: largest fraction of crystals that may be rejected. None accepts any number,
            even if no crystal is left, and logs nothing about them.
        num_workers: see `parse`.

    Raises:
        DataError: if too many crystals were rejected or none is left (the message has the first few
            reasons and the path of the full list), if the cache cannot be written, or if a worker
            process dies.
    """
    folder = cache_dir / _cache_key(reader, options)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            dataset = _open_cache(folder)
            if dataset is None:
                shutil.rmtree(folder, ignore_errors=True)
                _make_cache(folder, reader, options, num_workers)
                dataset = _open_cache(folder)
    except (OSError, SafetensorError) as error:  # SafetensorError if the disk is full
        dataset = _open_cache(folder)
        if dataset is None:
            raise DataError(
                f"Cannot write the cache of {reader.source} in {cache_dir} ({error}): "
                "point data.cache_dir to a writable folder"
            ) from error
    assert dataset is not None
    if max_rejected is not None:
        _check_rejected(folder, reader, len(dataset), max_rejected)
    return dataset


def _cache_key(reader: Reader, options: ReadOptions) -> str:
    digest = hashlib.sha256()
    files = reader.files
    described = {
        "format": FORMAT,
        "options": asdict(options),
        "properties": list(reader.properties),
        "pattern": getattr(reader, "pattern", None),  # selects files in an archive
        "versions": _versions(files),
    }
    digest.update(json.dumps(described).encode())
    for path in files:
        name = path.relative_to(reader.source.parent)  # part of the IDs
        digest.update(f"\n{name}\n".encode())
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()[:32]


def _versions(files: Sequence[Path]) -> dict[str, str | None]:
    """Versions of the packages that affect how these files are read."""
    names = set(_CIF_PACKAGES)
    for file in files:
        name = file.name.lower()
        if is_table(name):
            names.update(_TABLE_PACKAGES)
        elif not unpacked_name(name).endswith((".cif", ".mcif")):
            names.update(_OTHER_PACKAGES)
        if name.endswith(".zip"):  # may contain tables
            names.update(_TABLE_PACKAGES)
    return {name: _version(name) for name in sorted(names)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _open_cache(folder: Path) -> CrystalDataset | None:
    """The cache in `folder`, or None if it does not exist or is damaged."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in ("crystals.safetensors", "rejected.csv"):
            if manifest["sha256"][name] != sha256_of(folder / name):
                raise ValueError(f"{name} does not have the checksum in manifest.json")
        return CrystalDataset.load(folder / "crystals.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("The cache %s is damaged and will be recreated: %s", folder, error)
        return None


def _make_cache(
    folder: Path, reader: Reader, options: ReadOptions, num_workers: int | None
) -> None:
    partial = folder.with_suffix(".partial")  # may be left over from a killed job
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    names = reader.properties
    num_crystals = num_rejected = 0
    with (
        TensorWriter(partial / "crystals.safetensors") as writer,
        (partial / "rejected.csv").open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["where", "material_id", "reason"])
        for part in _parse(reader, options, f"Reading {reader.source}", num_workers):
            y = torch.from_numpy(part.properties)
            writer.append(_tensors(part), part.ids, {n: y[:, i] for i, n in enumerate(names)})
            table.writerows([record.where, record.id, reason] for record, reason in part.rejected)
            num_crystals += len(part.ids)
            num_rejected += len(part.rejected)
    manifest = {
        "sha256": {path.name: sha256_of(path) for path in sorted(partial.iterdir())},
        "source": str(reader.source),
        "num_crystals": num_crystals,
        "num_rejected": num_rejected,
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2))
    os.replace(partial, folder)
    log.info("Read %s crystals of %s into %s", f"{num_crystals:,}", reader.source, folder)


def _check_rejected(folder: Path, reader: Reader, num_crystals: int, max_rejected: float) -> None:
    path = folder / "rejected.csv"
    reasons: Counter[str] = Counter()
    first = ""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if reasons.total() < 5:
                first += f"\n  {row['where']} ({row['material_id']}): {row['reason']}"
            reasons[kind_of(row["reason"])] += 1
    num_rejected = reasons.total()
    total = num_crystals + num_rejected
    if not total:
        raise DataError(f"{reader.source} contains no crystals")
    if not num_rejected:
        return
    counts = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common(4))
    message = f"{num_rejected:,} of {total:,} crystals rejected ({counts}); see {path}"
    if num_crystals and num_rejected <= max_rejected * total:
        log.warning("%s", message)
        return
    advice = ["fix or remove them"]
    if reader.source.is_dir():
        advice.append("select other files with data.files")
    if num_crystals:
        advice.append(
            f"raise data.max_rejected (now {max_rejected}) if so many crystals may be left out"
        )
    raise DataError(f"{reader.source}: {message}.{first}\nTo continue, {', or '.join(advice)}.")
