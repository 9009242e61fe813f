"""Memory use and reading speed of a data set that is too large to keep in memory."""

import tempfile
from itertools import chain, repeat
from pathlib import Path

import torch

from benchmarks import Row, alternate, compare, in_fresh_process, peak_resident
from src.data.dataset import CrystalDataset
from src.data.loader import CrystalLoader, EpochSampler

MAX_ATOMS = 19  # 1 to 19 atoms, 10 on average
BATCH_SIZE = 256
TURN = 200  # batches per measurement

# Each of the 50.4 million parameters of the full-size model takes 6 floating-point operations per
# atom. An H100 does at most 989e12 per second in bfloat16 (NVIDIA's data sheet, dense, SXM).
H100_AT_PEAK = 989e12 / (6 * 50.4e6 * 10)


def run(num_crystals: int, rounds: int) -> list[Row]:
    """Compare shuffled batches from a file on disk with the same crystals in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crystals.safetensors"
        in_fresh_process(_write, str(path), num_crystals)
        size = path.stat().st_size / 2**20
        grown = in_fresh_process(_resident_growth, str(path))
        on_disk = CrystalDataset.load(path)
        in_memory = CrystalDataset(
            on_disk.atom_types.clone(),
            on_disk.frac_coords.clone(),
            on_disk.lattices.clone(),
            on_disk.num_atoms.clone(),
        )
        variants = {"in memory": _turns(in_memory), "on disk": _turns(on_disk)}
        rates = alternate(variants, rounds, "large")
    bench = f"large: {num_crystals:,} crystals"
    return [
        Row(bench, "size of the file", size, "MiB"),
        Row(bench, "growth of resident memory", grown, "MiB", grown / size),
        *compare(bench, rates, "crystals/s"),
        Row(bench, "an H100 at its peak would take", H100_AT_PEAK, "crystals/s"),
    ]


def _write(path: str, num_crystals: int) -> float:
    generator = torch.Generator().manual_seed(0)
    num_atoms = torch.randint(1, MAX_ATOMS + 1, (num_crystals,), generator=generator)
    total = int(num_atoms.sum())
    CrystalDataset(
        torch.randint(1, 90, (total,), generator=generator, dtype=torch.uint8),
        torch.rand(total, 3, generator=generator),
        5 * torch.eye(3) + torch.rand(num_crystals, 3, 3, generator=generator),
        num_atoms.int(),
    ).save(Path(path))
    return total


def _loader(dataset: CrystalDataset) -> CrystalLoader:
    return CrystalLoader(dataset, EpochSampler(len(dataset), BATCH_SIZE, shuffle=True))


def _resident_growth(path: str) -> float:
    """Growth of the peak resident memory in MiB while reading the first batches of an epoch."""
    before = peak_resident()
    for _ in zip(_loader(CrystalDataset.load(Path(path))), range(5 * TURN), strict=False):
        pass
    return peak_resident() - before


def _turns(dataset: CrystalDataset):
    batches = chain.from_iterable(repeat(_loader(dataset)))  # epoch after epoch

    def read() -> float:
        return sum(len(next(batches).num_atoms) for _ in range(TURN))

    return read
