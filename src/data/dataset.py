"""A split as a few flat tensors, made once from its files and cached on disk.

A cache is a folder named after a hash of all that decides its content: the bytes of the input, the
options, and the version of this format. It holds `crystals.safetensors` (memory-mapped when read),
`rejected.csv` and, written last, `manifest.json`. It is made under a file lock in a folder of
another name and then renamed, so that a cache is either whole or not there.
"""

import csv
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from src.data.cif import Crystal, CrystalError, check_crystal, read_cif
from src.data.flat import MappedTensors, ragged_index, save_tensors
from src.data.readers import DataError, Reader, Record
from src.data.schema import CrystalBatch, Part
from src.utils.checksum import sha256_of

log = logging.getLogger(__name__)

FORMAT = 2  # part of the cache's name: raise it when the same input gives other tensors
MAX_ATOMIC_NUMBER = 99


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records become crystals, and which are refused.

    Args:
        niggli: reduce each cell to its Niggli form.
        max_num_atoms: refuse larger crystals; None for no limit.
        max_atomic_number: refuse crystals with heavier elements.
        min_distance: refuse crystals with atoms closer than this, in Å.
    """

    niggli: bool = True
    max_num_atoms: int | None = None
    max_atomic_number: int = MAX_ATOMIC_NUMBER
    min_distance: float = 0.5


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
        self._file: MappedTensors | None = None
        self._rejected: Path | None = None
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
        self._file = file
        self._rejected = path.with_name("rejected.csv")
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
        if self._rejected is None:
            return []
        with self._rejected.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take on a device."""
        tensors = (self.atom_types, self.frac_coords, self.lattices, self.num_atoms)
        return sum(t.nbytes for t in (*tensors, *self.y.values()))

    def census(self) -> dict[str, Any]:
        """What is in it, as plain types with string keys.

        Returns:
            `num_crystals`; `num_atoms`: crystals by their number of atoms; `elements`: atoms by
            atomic number.
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
        return self.from_batch(self.batch(indices), [self.ids[i] for i in indices.tolist()])

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


def read_record(record: Record, options: ReadOptions) -> Crystal:
    """The crystal of a record.

    Raises:
        CrystalError: if it cannot be used; the message says why.
    """
    crystal = read_cif(record.cif, niggli=options.niggli)
    check_crystal(crystal, options.max_num_atoms, options.max_atomic_number, options.min_distance)
    return crystal


def read_crystals(
    records: Reader, options: ReadOptions, progress: str | None = None
) -> tuple[CrystalDataset, list[tuple[Record, str]]]:
    """Turn records into a data set; what cannot be used is returned with the reason.

    Args:
        progress: a title to show progress under.
    """
    atom_types, frac_coords, lattices, ids, properties = [], [], [], [], []
    rejected = []
    for record in track(records, progress or "", disable=progress is None, transient=True):
        try:
            crystal = read_record(record, options)
        except CrystalError as error:
            rejected.append((record, str(error)))
            continue
        atom_types.append(crystal.atom_types.astype(np.uint8))
        frac_coords.append(crystal.frac_coords.astype(np.float32))
        lattices.append(crystal.lattice.astype(np.float32))
        ids.append(record.id)
        properties.append(record.properties)
    names = getattr(records, "properties", ())
    y = torch.tensor(properties, dtype=torch.float32).reshape(len(ids), len(names))
    empty = np.zeros((0, 3), np.float32)
    dataset = CrystalDataset(
        torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *atom_types])),
        torch.from_numpy(np.concatenate([empty, *frac_coords])),
        torch.from_numpy(np.array(lattices, np.float32).reshape(-1, 3, 3)),
        torch.tensor([len(a) for a in atom_types], dtype=torch.int32),
        ids,
        {name: y[:, i].clone() for i, name in enumerate(names)},
    )
    return dataset, rejected


def load_split(
    reader: Reader, options: ReadOptions, cache_dir: Path, max_rejected: float | None = 0.1
) -> CrystalDataset:
    """The crystals of one split: from its cache, which is made first where it is not there.

    Safe to call from many processes at once: one makes the cache, the others wait for it. One that
    is there is used also where nothing can be written.

    Args:
        max_rejected: None to take what there is, be it nothing, without a word.

    Raises:
        DataError: if more than the share `max_rejected` of the crystals cannot be used, or none
            can; it names the first few and the file with them all. If the cache cannot be written.
    """
    folder = cache_dir / _cache_key(reader, options)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            dataset = _open_cache(folder)
            if dataset is None:
                shutil.rmtree(folder, ignore_errors=True)
                _make_cache(folder, reader, options)
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
        _check_rejected(folder, reader, dataset, max_rejected)
    return dataset


def _cache_key(reader: Reader, options: ReadOptions) -> str:
    digest = hashlib.sha256()
    described = {
        "format": FORMAT,
        "options": asdict(options),
        "properties": list(getattr(reader, "properties", ())),
    }
    digest.update(json.dumps(described).encode())
    for path in reader.files:
        name = path.relative_to(reader.source.parent)  # it is part of the ids
        digest.update(f"\n{name}\n".encode())
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()[:32]


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


def _make_cache(folder: Path, reader: Reader, options: ReadOptions) -> None:
    dataset, rejected = read_crystals(reader, options, progress=f"Reading {reader.source}")
    partial = folder.with_suffix(".partial")  # left there by a job that was killed, if it exists
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    dataset.save(partial / "crystals.safetensors")
    with (partial / "rejected.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["where", "material_id", "reason"])
        writer.writerows([record.where, record.id, reason] for record, reason in rejected)
    manifest = {
        "sha256": {path.name: sha256_of(path) for path in sorted(partial.iterdir())},
        "source": str(reader.source),
        "num_crystals": len(dataset),
        "num_rejected": len(rejected),
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2))
    os.replace(partial, folder)
    log.info("Read %s crystals of %s into %s", f"{len(dataset):,}", reader.source, folder)


def _check_rejected(
    folder: Path, reader: Reader, dataset: CrystalDataset, max_rejected: float
) -> None:
    rejected = dataset.rejected()
    total = len(dataset) + len(rejected)
    if not total:
        raise DataError(f"{reader.source} holds no crystals")
    if not rejected:
        return
    reasons = Counter(row["reason"].split(":")[0] for row in rejected)
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))
    path = folder / "rejected.csv"
    message = f"{len(rejected):,} of {total:,} crystals rejected ({counts}); see {path}"
    if len(dataset) and len(rejected) <= max_rejected * total:
        log.warning("%s", message)
        return
    first = "".join(
        f"\n  {row['where']} ({row['material_id']}): {row['reason']}" for row in islice(rejected, 5)
    )
    raise DataError(
        f"{reader.source}: {message}.{first}\nMend or remove them, or raise data.max_rejected "
        f"(now {max_rejected}) where so many are meant to be left out."
    )
