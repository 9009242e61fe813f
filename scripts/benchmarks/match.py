"""Speed of structure matching in a plain loop and in pools of worker processes."""

import torch

from benchmarks import Row, alternate, compare
from src.data.dataset import CrystalDataset
from src.metrics.matching import CDVAE, MatcherPool

NUM_PAIRS = 256
JITTER = 0.02  # fraction of the cell, so that the RMS distance is not zero


def run(dataset: CrystalDataset, rounds: int) -> list[Row]:
    """Match crystals with slightly perturbed copies of themselves, in pairs/s."""
    batch = dataset.batch(torch.arange(min(NUM_PAIRS, len(dataset))))
    generator = torch.Generator().manual_seed(0)
    noise = JITTER * torch.randn(batch.frac_coords.shape, generator=generator)
    targets = batch.to_structure()
    predictions = batch.replace(frac_coords=batch.frac_coords + noise).to_structure()
    pools = {"serial": MatcherPool(0), "1 worker": MatcherPool(1), "2 workers": MatcherPool(2)}
    results = {}

    def variant(name: str, pool: MatcherPool):
        def match() -> float:
            results[name] = pool.match(targets, predictions, CDVAE)
            return len(targets)

        return match

    try:
        variants = {name: variant(name, pool) for name, pool in pools.items()}
        rates = alternate(variants, rounds, "match")
    finally:
        for pool in pools.values():
            pool.close()
    if any(result != results["serial"] for result in results.values()):
        raise RuntimeError("the pools and the plain loop give different results")
    return compare(f"match: {len(targets)} pairs", rates, "pairs/s")
