"""How time and memory scale with the size of crystals, batches and models, with a plot."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch

from benchmarks import (
    Row,
    alternate,
    can_measure_memory,
    device,
    in_fresh_process,
    peak_memory,
)
from benchmarks.models import PRESETS, has_native_bf16, make_step, make_vae
from src.data.schema import CrystalBatch
from src.utils.memory import keep_freed_memory

ATOMS = (5, 10, 20, 50, 100, 200)
BATCHES = (16, 64, 256, 1024, 4096)
TOKENS = 2_560  # atoms in a batch when the number of atoms per crystal varies


def run(preset: str, rounds: int, picture: Path) -> list[Row]:
    """Time and memory of a training step per atom, along each of the three axes."""
    keep_freed_memory()
    by_atoms = {str(n): _cost(preset, TOKENS // n, n, rounds) for n in ATOMS}
    by_batch = {str(b): _cost(preset, b, 10, rounds) for b in BATCHES}
    by_model = {name: _cost(name, 256, 10, rounds) for name in PRESETS}
    panels = {
        f"atoms per crystal ({preset}, {TOKENS:,} atoms in a batch)": by_atoms,
        f"crystals in a batch ({preset}, 10 atoms each)": by_batch,
        "model (256 crystals of 10 atoms)": by_model,
    }
    _draw(panels, picture)
    return [
        Row(f"scale: {axis}: {kind}", name, value, unit)
        for axis, costs in panels.items()
        for kind, unit, index in (("time", "µs/atom", 0), ("memory", "KiB/atom", 1))
        for name, values in costs.items()
        if (value := values[index]) is not None
    ]


def _cost(preset: str, num_crystals: int, n: int, rounds: int) -> tuple[float, float | None]:
    """Time of a step in µs per atom, and its peak memory in KiB per atom."""
    step, batch = _step_and_batch(preset, num_crystals, n)

    def variant() -> float:
        step(batch)
        return num_crystals * n

    rate = alternate({"step": variant}, rounds, f"{preset}, {num_crystals} x {n}")["step"]
    if not can_measure_memory():
        return 1e6 / rate, None
    return 1e6 / rate, in_fresh_process(_memory, preset, num_crystals, n)


def _memory(preset: str, num_crystals: int, n: int) -> float:
    """Peak memory of two steps in KiB per atom, minus that of a step on one small crystal."""
    step, batch = _step_and_batch(preset, num_crystals, n)
    step(_step_and_batch(preset, 1, 2)[1])
    before = peak_memory()
    step(batch)
    step(batch)
    return (peak_memory() - before) * 2**10 / (num_crystals * n)


def _step_and_batch(
    preset: str, num_crystals: int, n: int
) -> tuple[Callable[[CrystalBatch], None], CrystalBatch]:
    where = device()
    step = make_step(make_vae(PRESETS[preset]).to(where), bf16=has_native_bf16(), fused=True)
    generator = torch.Generator().manual_seed(0)
    batch = CrystalBatch.from_tensors(
        torch.randint(1, 90, (num_crystals * n,), generator=generator),
        torch.rand(num_crystals * n, 3, generator=generator),
        torch.eye(3).expand(num_crystals, 3, 3) * 3 * n ** (1 / 3),
        torch.full((num_crystals,), n),
        max_num_atoms=n,
    )
    return step, batch.to(where)


def _draw(panels: dict[str, dict[str, tuple[float, float | None]]], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(panels), figsize=(13, 7), sharex="col", constrained_layout=True
    )
    for column, (title, costs) in zip(axes.T, panels.items(), strict=True):
        for axis, index in zip(column, (0, 1), strict=True):
            values = [cost[index] for cost in costs.values()]
            if None not in values:
                axis.plot(list(costs), values, marker="o")
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        column[1].set_xlabel(title)
    axes[0, 0].set_ylabel("training step, µs per atom")
    axes[1, 0].set_ylabel("memory of the step, KiB per atom")
    figure.savefig(path, dpi=110)
