"""Speed of encoding, decoding and sampling with the packed and the stock Transformer."""

from functools import partial

import torch

from benchmarks import Row, alternate, compare, device
from benchmarks.models import PRESETS, has_native_bf16, make_vae
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.utils.memory import keep_freed_memory
from src.vae_module import VAEModule

NUM_SAMPLES = 10_000
CALLS = ("encode", "decode", "sample", "sample to Structure")


@torch.no_grad()
def run(dataset: CrystalDataset, preset: str, batch_size: int, rounds: int) -> list[Row]:
    """Crystals/s of each call, and the total time for 10,000 samples."""
    keep_freed_memory()
    where = device()
    data = dataset.to(where)
    batches = [data.batch(part) for part in torch.arange(len(data)).split(batch_size)]
    vaes = {"stock-fp32": make_vae(PRESETS[preset], stock=True).to(where).eval()}
    vaes["packed-fp32"] = make_vae(PRESETS[preset]).to(where).eval()
    if has_native_bf16():
        vaes["packed-bf16"] = vaes["packed-fp32"]

    rows = []
    for call in CALLS:
        variants = {
            name: partial(_work, vae, call, batches, "bf16" in name) for name, vae in vaes.items()
        }
        rates = alternate(variants, rounds, call)
        rows += compare(f"infer, {preset}, batch {batch_size}: {call}", rates, "crystals/s")

    many = dataset.num_atoms[torch.arange(NUM_SAMPLES) % len(dataset)].to(where)
    asks = [CrystalBatch.for_sampling(part.long()) for part in many.split(batch_size)]
    name, vae = list(vaes.items())[-1]
    for call in CALLS[2:]:
        rate = alternate({name: partial(_work, vae, call, asks, "bf16" in name)}, 1, call)[name]
        title = f"infer, {preset}: {NUM_SAMPLES:,} samples, {call}"
        rows.append(Row(title, name, NUM_SAMPLES / rate, "s"))
    return rows


def _work(vae: VAEModule, call: str, batches: list[CrystalBatch], bf16: bool) -> float:
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=bf16):
        for batch in batches:
            if call == "encode":
                vae.encode(batch)
            elif call == "decode":
                x = torch.zeros(len(batch.batch), vae.latent_dim, device=vae.device)
                vae.decode({"x": x, **vae._layout(batch)})
            else:
                vae.sample(batch, return_structures=call == "sample to Structure")
    return sum(len(batch.num_atoms) for batch in batches)
