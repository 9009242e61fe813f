"""How time and memory grow with crystals, batches and models, with a picture."""

from pathlib import Path

import matplotlib as mpl
import torch

from benchmarks import Row, alternate, device
from benchmarks.models import PRESETS, has_native_bf16, make_step, make_vae
from src.data.schema import CrystalBatch
from src.utils.memory import keep_freed_memory

ATOMS = (5, 10, 20, 50, 100, 200)
BATCHES = (16, 64, 256, 1024, 4096)
TOKENS = 2_560  # in a batch, where the number of atoms per crystal changes


def run(preset: str, rounds: int, picture: Path) -> list[Row]:
    """Microseconds of a training step per atom, along each of the three axes."""
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
    """µs per atom of a step, and on a GPU KiB per atom at its peak."""
    where = device()
    vae = make_vae(PRESETS[preset]).to(where)
    step = make_step(vae, bf16=has_native_bf16(), fused=True)
    generator = torch.Generator().manual_seed(0)
    batch = CrystalBatch.from_tensors(
        torch.randint(1, 90, (num_crystals * n,), generator=generator),
        torch.rand(num_crystals * n, 3, generator=generator),
        torch.eye(3).expand(num_crystals, 3, 3) * 3 * n ** (1 / 3),
        torch.full((num_crystals,), n),
        max_num_atoms=n,
    ).to(where)

    def variant() -> float:
        step(batch)
        return num_crystals * n

    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = alternate({"step": variant}, rounds, f"{preset}, {num_crystals} x {n}")["step"]
    peak = torch.cuda.max_memory_allocated() if where.type == "cuda" else None
    return 1e6 / rate, None if peak is None else peak / 2**10 / (num_crystals * n)


def _draw(panels: dict[str, dict[str, tuple[float, float | None]]], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4), constrained_layout=True)
    for axis, (title, costs) in zip(axes, panels.items(), strict=True):
        axis.plot(list(costs), [time for time, _ in costs.values()], marker="o")
        axis.set_xlabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training step, µs per atom")
    figure.savefig(path, dpi=120)
