"""Structure matching: our matcher against pymatgen's, a plain loop, and pools of workers."""

import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from benchmarks import Row, alternate, compare
from src.data.dataset import CrystalDataset
from src.metrics import PreparedCrystals, match
from src.metrics.matching import CDVAE, UNREDUCED, MatcherPool, MatcherSettings, rms_distance
from src.metrics.structure_matching.search import has_numba

NUM_PAIRS = 256
JITTER = 0.02  # of the cell, so that the matcher has something to measure
STRAIN = 0.005  # and of the cell, so that no mapping is exact, as in a reconstruction


def run(dataset: CrystalDataset, rounds: int) -> list[Row]:
    """Pairs/s for crystals and simulated reconstructions of them."""
    # at random, since files are often sorted
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator)
    batch = dataset.batch(order[: min(NUM_PAIRS, len(dataset))])
    noise = JITTER * torch.randn(batch.frac_coords.shape, generator=generator)
    strain = STRAIN * torch.randn(batch.lattices.shape, generator=generator)
    targets = batch.to_structure()
    predictions = batch.replace(
        frac_coords=batch.frac_coords + noise, lattices=batch.lattices * (1 + strain)
    ).to_structure()
    rows = []
    for name, settings in (("primitive cells", CDVAE), ("no primitive reduction", UNREDUCED)):
        rows += _against_pymatgen(name, predictions, targets, settings, rounds)
    return rows + _pools(predictions, targets, rounds)


def _against_pymatgen(
    name: str,
    predictions: list[Structure],
    targets: list[Structure],
    settings: MatcherSettings,
    rounds: int,
) -> list[Row]:
    """On one core, in this process; pymatgen reduces each crystal, as do all but the last two."""
    results = {}

    def stock() -> float:
        StructureMatcher._get_reduced_istructure.cache_clear()
        results["StructureMatcher"] = [
            rms_distance(*pair, settings) for pair in zip(predictions, targets, strict=True)
        ]
        return len(targets)

    def ours(name: str, first, second, compiled: bool):
        def run() -> float:
            found = match(first(), second(), settings, compiled=compiled)
            results[name] = [result.rms for result in found]
            return len(targets)

        return run

    kept = PreparedCrystals(predictions), PreparedCrystals(targets)
    variants = {"StructureMatcher": stock}
    for label, compiled in (("NumPy", False), *([("Numba", True)] if has_numba() else [])):
        variants[label] = ours(label, lambda: predictions, lambda: targets, compiled)
        label += ", reduced before"
        variants[label] = ours(label, lambda: kept[0], lambda: kept[1], compiled)
    rates = alternate(variants, rounds, f"match, {name}")
    expected = np.array(results["StructureMatcher"], dtype=float)  # NaN for no match
    for label, found in results.items():
        given = np.array(found, dtype=float)
        if not np.allclose(given, expected, rtol=0, atol=1e-6, equal_nan=True):
            raise RuntimeError(f"{label} and StructureMatcher do not agree")
    return compare(f"match: {len(targets)} pairs, {name}", rates, "pairs/s")


def _pools(predictions: list[Structure], targets: list[Structure], rounds: int) -> list[Row]:
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
    return compare(f"match: {len(targets)} pairs in pools", rates, "pairs/s")
