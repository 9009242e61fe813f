"""A split as a few flat tensors, made once from its files and cached on disk.

A cache is a folder named after a hash of all that decides its content: the bytes of the input, the
options, the versions of the packages that read it, and that of this format. It holds
`crystals.safetensors` (memory-mapped when read), `rejected.csv` and, written last, `manifest.json`.
It is made under a file lock in a folder of another name and then renamed, so that a cache is either
whole or not there.
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
from src.data.parsing import Parsed, ReadOptions, parse, read_record
from src.data.readers import DataError, Reader, Record, is_table
from src.data.rejections import kind_of
from src.data.schema import CrystalBatch, Part
from src.utils.checksum import sha256_of

log = logging.getLogger(__name__)

FORMAT = 3  # part of the cache's name: raise it when the same input gives other tensors

_FOR_CIFS = ("gemmi", "numpy", "spglib")
_FOR_TABLES = ("pandas", "pyarrow")
_FOR_OTHERS = ("ase", "pymatgen", "pymatgen-core")  # the latter holds most of newer pymatgens


class CrystalDataset(Dataset):
    """Crystals in flat tensors; a batch of them is an index operation.

    Args:
        atom_types: (N,) atomic numbers.
        frac_coords: (N, 3).
        lattices: (B, 3, 3) Å.
        num_atoms: (B,).
        ids: B names; their numbers by default.
        y: properties by name, (B,) each.
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
        self.path: Path | None = None  # of the cache that it was loaded from
        self._file: MappedTensors | None = None
        # The host knows every count, so that no batch has to ask the device for its size.
        self._host_num_atoms = num_atoms.cpu()
        self._starts = torch.nn.functional.pad(num_atoms.cumsum(0), (1, 0))[:-1]

    @classmethod
    def from_batch(cls, batch: CrystalBatch, ids: Sequence[str] | None = None) -> Self:
        """The crystals of a batch as a data set."""
        return cls(
            batch.atom_types, batch.frac_coords, batch.lattices, batch.num_atoms, ids, batch.y
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a cache's `crystals.safetensors`; the large tensors stay on disk until read."""
        file = MappedTensors(path)
        self = cls(**file.tensors, ids=file.ids, y=file.y)
        self._file, self.path = file, path
        return self

    def save(self, path: Path) -> None:
        """Write what `load` reads."""
        names = ("atom_types", "frac_coords", "lattices", "num_atoms")
        save_tensors(path, {name: getattr(self, name) for name in names}, self.ids, self.y)

    @cached_property
    def ids(self) -> Sequence[str]:
        return [str(i) for i in range(len(self))] if self._ids is None else self._ids

    def rejected(self) -> list[dict[str, str]]:
        """What was left out when the cache that this was loaded from was made; else nothing.

        Returns:
            `where` (file, row), `material_id` and `reason` of each, in the order of the input.
        """
        if self.path is None:
            return []
        with self.path.with_name("rejected.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take on a device."""
        tensors = (self.atom_types, self.frac_coords, self.lattices, self.num_atoms)
        return sum(t.nbytes for t in (*tensors, *self.y.values()))

    def census(self) -> dict[str, Any]:
        """What is in it, as plain types with string keys.

        Returns:
            `num_crystals`, `num_atoms` (crystals by their number of atoms) and `elements` (atoms by
            atomic number).
        """
        return {
            "num_crystals": len(self),
            "num_atoms": _count(self._host_num_atoms),
            "elements": _count(self.atom_types),
        }

    def __len__(self) -> int:
        return len(self.num_atoms)

    def __getitem__(self, index: int) -> Data:
        """Crystal `index` as a PyG `Data`, for code that collates objects; `batch` is faster."""
        return self.batch(torch.tensor([range(len(self))[index]])).get_example(0)

    def batch(self, indices: Tensor, part: Part | None = None) -> CrystalBatch:
        """The crystals at `indices` ((b,) int64, on the host), in that order.

        On a device this queues a few kernels and waits for none.
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
        """What the process `rank` holds of the batch of the indices `whole`."""
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
        """The crystals at `indices` ((b,) int64, on the host) as a data set of their own."""
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
    """Turn records into a data set in memory; what cannot be used is returned with the reason.

    Args:
        progress: a title to show progress under.
        num_workers: see `parse`.
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
) -> Iterator[Parsed]:
    """`parse` with a line that counts the records."""
    columns = (TextColumn("{task.description}"), SpinnerColumn(),
               TextColumn("{task.completed:,} crystals"), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, transient=True, disable=progress is None) as bar:
        task = bar.add_task(progress or "", total=None)
        read = functools.partial(read_record, options=options)
        for part in parse(records, read, num_workers, len(records.properties)):
            yield part
            bar.advance(task, len(part.ids) + len(part.rejected))


def _tensors(part: Parsed) -> dict[str, Tensor]:
    names = ("atom_types", "frac_coords", "lattices", "num_atoms")
    return {name: torch.from_numpy(getattr(part, name)) for name in names}


def load_split(
    reader: Reader,
    options: ReadOptions,
    cache_dir: Path,
    max_rejected: float | None = 0.1,
    num_workers: int | None = None,
) -> CrystalDataset:
    """The crystals of one split: from its cache, which is made first where it is not there.

    Safe to call from many processes at once: one makes the cache, the others wait for it. One that
    is there is used also where nothing can be written. Making one takes memory that does not grow
    with the number of crystals, and the processes `num_workers` (see `parse`).

    Args:
        max_rejected: None to take what there is, be it nothing, without a word.

    Raises:
        DataError: if more than the share `max_rejected` of the crystals cannot be used, or none
            can; it names the first few and the file with them all. If the cache cannot be written,
            or a worker dies.
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
    except (OSError, SafetensorError) as error:  # safetensors' own, where the disk is full
        dataset = _open_cache(folder)
        if dataset is None:
            raise DataError(
                f"Cannot write the cache of {reader.source} in {cache_dir} ({error}): "
                "point data.cache_dir to a folder that can be written"
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
        "pattern": getattr(reader, "pattern", None),  # chooses what of an archive is read
        "versions": _versions(files),
    }
    digest.update(json.dumps(described).encode())
    for path in files:
        name = path.relative_to(reader.source.parent)  # it is part of the ids
        digest.update(f"\n{name}\n".encode())
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()[:32]


def _versions(files: Sequence[Path]) -> dict[str, str | None]:
    """Of the packages whose release may change what reading these files yields."""
    names = set(_FOR_CIFS)
    for file in files:
        name = file.name.lower()
        if is_table(name):
            names.update(_FOR_TABLES)
        elif not name.endswith((".cif", ".cif.gz")):
            names.update(_FOR_OTHERS)
        if name.endswith(".zip"):  # may hold tables
            names.update(_FOR_TABLES)
    return {name: _version(name) for name in sorted(names)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _open_cache(folder: Path) -> CrystalDataset | None:
    """The cache in `folder`, or None if it is not there or broken."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in ("crystals.safetensors", "rejected.csv"):
            if manifest["sha256"][name] != sha256_of(folder / name):
                raise ValueError(f"{name} does not have the checksum in manifest.json")
        return CrystalDataset.load(folder / "crystals.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("The cache %s is broken and is made again: %s", folder, error)
        return None


def _make_cache(
    folder: Path, reader: Reader, options: ReadOptions, num_workers: int | None
) -> None:
    partial = folder.with_suffix(".partial")  # left there by a job that was killed, if it exists
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
        raise DataError(f"{reader.source} holds no crystals")
    if not num_rejected:
        return
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))
    message = f"{num_rejected:,} of {total:,} crystals rejected ({counts}); see {path}"
    if num_crystals and num_rejected <= max_rejected * total:
        log.warning("%s", message)
        return
    choose = "choose others with data.files, " if reader.source.is_dir() else ""
    raise DataError(
        f"{reader.source}: {message}.{first}\nMend or remove them, {choose}or raise "
        f"data.max_rejected (now {max_rejected}) where so many are meant to be left out."
    )
