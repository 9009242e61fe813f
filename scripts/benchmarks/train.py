"""Speed of training steps: stock, packed, packed in bfloat16, and a full epoch with Lightning."""

import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from benchmarks import (
    Row,
    alternate,
    can_measure_memory,
    compare,
    device,
    in_fresh_process,
    peak_memory,
)
from benchmarks.models import (
    PRESETS,
    collated_batches,
    has_native_bf16,
    indexed_batches,
    make_step,
    make_vae,
    matmul_flops_per_second,
    model_flops,
)
from src.callbacks import Throughput
from src.data import DataModule
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.utils.memory import keep_freed_memory


def run(dataset: CrystalDataset, preset: str, batch_size: int, rounds: int) -> list[Row]:
    """Crystals/s, atoms/s, peak memory and share of the matmul speed of each variant."""
    keep_freed_memory()
    where = device()
    on_device = dataset.to(where)
    epochs = {name: _epoch(on_device, dataset, preset, batch_size, name) for name in _names()}
    lightning = _Lightning(dataset, preset, batch_size)
    bf16, float32 = (matmul_flops_per_second(t, where) for t in (torch.bfloat16, torch.float32))
    rates = alternate(
        {**epochs, "lightning-bf16": lightning, "ceiling bf16": bf16, "ceiling fp32": float32},
        rounds,
        f"train, {preset}",
    )
    ceilings = {"bf16": rates.pop("ceiling bf16"), "fp32": rates.pop("ceiling fp32")}
    rates["lightning-bf16"] = lightning.median()

    title = f"train, {preset}, batch {batch_size}, {len(dataset)} crystals"
    atoms = int(dataset.num_atoms.sum()) / len(dataset)
    flops = model_flops(make_vae(PRESETS[preset]), dataset.num_atoms) / len(dataset)
    rows = compare(title, rates, "crystals/s")
    rows += compare(f"{title}: atoms", {k: v * atoms for k, v in rates.items()}, "atoms/s")
    step = {name: batch_size / rate for name, rate in rates.items()}
    rows += compare(f"{title}: step", step, "s/step")
    for name, rate in rates.items():
        kind = "fp32" if "fp32" in name else "bf16"
        share = 100 * rate * flops / ceilings[kind]
        rows.append(Row(f"{title}: share of a {kind} matrix product's FLOP/s", name, share, "%"))
    rows += [Row(f"{title}: ceiling", k, v / 1e9, "GFLOP/s") for k, v in ceilings.items()]
    if can_measure_memory():
        arguments = (dataset, preset, batch_size)
        memory = {name: in_fresh_process(_memory, *arguments, name) for name in epochs}
        rows += compare(f"{title}: peak memory of the process", memory, "MiB")
    return rows


def _names() -> list[str]:
    names = ["stock-fp32", "packed-fp32"]
    if has_native_bf16():
        names.append("packed-bf16")
    fastest = names[-1]
    names.append(f"{fastest}-muon")
    if torch.cuda.is_available():
        names.append(f"{fastest}-compiled")
    return names


def _epoch(
    on_device: CrystalDataset, dataset: CrystalDataset, preset: str, batch_size: int, name: str
) -> Callable[[], float]:
    """A variant that trains for one epoch."""
    stock = name.startswith("stock")
    vae = make_vae(PRESETS[preset], stock).to(on_device.frac_coords.device)
    if name.endswith("compiled"):
        vae.compile_networks()
    step = make_step(vae, bf16="bf16" in name, fused=not stock, muon=name.endswith("muon"))
    batches: Iterator[CrystalBatch] = (
        collated_batches(dataset, batch_size) if stock else indexed_batches(on_device, batch_size)
    )
    num_batches = -(-len(dataset) // batch_size)

    def epoch() -> float:
        for batch in islice(batches, num_batches):
            step(batch.to(on_device.frac_coords.device))
        return len(dataset)

    return epoch


class _Lightning:
    """A variant that trains for one epoch with the data module, the Trainer and normal logging.

    Its rates are measured within the training loop and exclude the setup of the Trainer.
    """

    def __init__(self, dataset: CrystalDataset, preset: str, batch_size: int) -> None:
        self.preset = preset
        self.module = DataModule(".", batch_size=batch_size)
        self.module._datasets = {"train": dataset}  # instead of reading "."
        self.module.prepare_data = lambda: None  # type: ignore[method-assign]
        self.rates: list[float] = []

    def __call__(self) -> float:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.ERROR)
        throughput = Throughput()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=1,
                precision="bf16-mixed" if has_native_bf16() else "32-true",
                gradient_clip_val=1.0,
                callbacks=[throughput, LearningRateMonitor()],
                logger=CSVLogger(folder),
                limit_val_batches=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(make_vae(PRESETS[self.preset]), datamodule=self.module)
        self.rates.append(throughput.crystals_per_second)
        return throughput.crystals

    def median(self) -> float:
        return statistics.median(self.rates[1:])


def _memory(dataset: CrystalDataset, preset: str, batch_size: int, name: str) -> float:
    """Peak memory of two steps in MiB."""
    few = dataset.subset(torch.arange(min(2 * batch_size, len(dataset))))
    _epoch(few.to(device()), few, preset, batch_size, name)()
    return peak_memory()
