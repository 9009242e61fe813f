"""Structure matching: our matcher against pymatgen's, alone and in what uses it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from benchmarks import Row, alternate, compare
from src.data import DataModule
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.metrics import PreparedCrystals, match
from src.metrics.generation.evaluate import first_matches
from src.metrics.matching import (
    CDVAE,
    PYMATGEN,
    UNREDUCED,
    AnyMatcher,
    FastMatcher,
    MatcherPool,
    MatcherSettings,
    rms_distance,
)
from src.metrics.reconstruction.evaluate import match_batches, prepare_batches
from src.metrics.structure_matching import judging
from src.metrics.structure_matching.search import has_numba
from src.vae_module import VAEModule
from src.vae_module.evaluation import noise_curve

ROOT = Path(__file__).resolve().parents[2]
NUM_PAIRS = 256
LEVELS = (0, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the noise, as in an evaluation
REFERENCES = 2.7  # per generated crystal
JITTER = 0.02  # of the cell, so that the matcher has something to measure
STRAIN = 0.005  # and of the cell, so that no mapping is exact, as in a reconstruction


TABLES = ("pairs", "noise", "novelty", "workers", "training")


def run(
    dataset: CrystalDataset, crystals: int, rounds: int, tables: Sequence[str] = TABLES
) -> list[Row]:
    """Speed on crystals and what might be their reconstructions.

    Args:
        dataset: What to match.
        crystals: For all but the tables of `pairs`, which take `NUM_PAIRS`.
        rounds: See `alternate`.
        tables: Which of `TABLES`.
    """
    # at random, since files are often sorted
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator)
    rows = []
    if "pairs" in tables:
        rows += _pairs(dataset.batch(order[:NUM_PAIRS]), rounds, generator)
    if "noise" in tables:
        rows += _noise(crystals, rounds)
    if "novelty" in tables:
        rows += _novelty(dataset, crystals, rounds, generator)
    if "workers" in tables:
        rows += _workers(dataset, crystals, rounds, generator)
    if "training" in tables:
        rows += _end_of_training(dataset.subset(order[:crystals]), rounds, generator)
    return rows


def _pairs(batch: CrystalBatch, rounds: int, generator: torch.Generator) -> list[Row]:
    moved = moved_crystals(batch, JITTER, generator)
    targets, predictions = batch.to_structure(), moved.to_structure()
    rows = []
    for name, settings in (("primitive cells", CDVAE), ("no primitive reduction", UNREDUCED)):
        rows += _against_pymatgen(name, predictions, targets, settings, rounds)
    return rows


def moved_crystals(batch: CrystalBatch, jitter: float, generator: torch.Generator) -> CrystalBatch:
    noise = jitter * torch.randn(batch.frac_coords.shape, generator=generator)
    strain = STRAIN * torch.randn(batch.lattices.shape, generator=generator)
    return batch.replace(
        frac_coords=batch.frac_coords + noise, lattices=batch.lattices * (1 + strain)
    )


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


def _noise(crystals: int, rounds: int) -> list[Row]:
    """The noise curve of an evaluation, with encoding and decoding, on one core.

    The model is the one that comes with the included prototypes, and so are the crystals.
    """
    folder = ROOT / "data" / "prototypes"
    vae = VAEModule.load_from_checkpoint(folder / "vae.ckpt").eval()
    dataset = DataModule(folder).dataset("test")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    dataset = dataset.subset(order[:crystals])
    results = {}

    def curve(name: str, matcher: AnyMatcher):
        def run() -> float:
            StructureMatcher._get_reduced_istructure.cache_clear()
            batch = dataset.batch(torch.arange(len(dataset)))
            with torch.inference_mode():
                mean = vae.encode(batch)["posterior"].mean
            noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)) * mean.std(
                0
            )
            targets = prepare_batches([batch], matcher)
            results[name] = noise_curve(vae, dataset, matcher, targets, mean, noise, LEVELS, 256)
            return len(dataset)

        return run

    variants = {"pymatgen": curve("pymatgen", MatcherPool(0)), "fast": curve("fast", _alone())}
    rates = alternate(variants, rounds, "noise")
    if results["fast"] != results["pymatgen"]:
        raise RuntimeError("the two matchers give different curves")
    return compare(f"noise curve of {len(LEVELS)} levels: {len(dataset)}", rates, "crystals/s")


def _novelty(
    dataset: CrystalDataset, crystals: int, rounds: int, generator: torch.Generator
) -> list[Row]:
    """Uniqueness and novelty, on one core.

    The generated crystals are displaced copies, half of them so much that few match; a data set
    that is too small is repeated.
    """
    count = round(REFERENCES * crystals)
    batch = dataset.batch(torch.randint(len(dataset), (count,), generator=generator))
    references = batch.to_structure()
    chosen = dataset.batch(torch.randint(len(dataset), (crystals,), generator=generator))
    generated = [
        near if k % 2 else far
        for k, (near, far) in enumerate(
            zip(
                moved_crystals(chosen, JITTER, generator).to_structure(),
                moved_crystals(chosen, 5 * JITTER, generator).to_structure(),
                strict=True,
            )
        )
    ]
    results = {}

    def search(name: str, matcher: AnyMatcher):
        def run() -> float:
            StructureMatcher._get_reduced_istructure.cache_clear()
            fast = isinstance(matcher, FastMatcher)
            given = PreparedCrystals(generated) if fast else generated
            unique, _ = first_matches(given, None, matcher, PYMATGEN)
            known, _ = first_matches(given, references, matcher, PYMATGEN)
            results[name] = unique, known
            return crystals

        return run

    variants = {"pymatgen": search("pymatgen", MatcherPool(0)), "fast": search("fast", _alone())}
    rates = alternate(variants, rounds, "novelty")
    if results["fast"] != results["pymatgen"]:
        raise RuntimeError("the two matchers give different matches")
    name = f"uniqueness and novelty: {crystals} crystals, {count} references"
    return compare(name, rates, "crystals/s")


def _workers(
    dataset: CrystalDataset, crystals: int, rounds: int, generator: torch.Generator
) -> list[Row]:
    """One process and two, whose start is not counted."""
    batch = dataset.batch(torch.randint(len(dataset), (4 * crystals,), generator=generator))
    moved = moved_crystals(batch, JITTER, generator)
    results = {}

    def variant(workers: judging.Workers):
        def run() -> float:
            results[workers.number] = match(moved, batch, [CDVAE, PYMATGEN], num_workers=workers)
            return len(batch.num_atoms)

        return run

    with judging.Workers(1) as one, judging.Workers(2) as two:
        two.start()
        variants = {"1 process": variant(one), "2 processes": variant(two)}
        rates = alternate(variants, rounds, "workers")
    if results[1] != results[2]:
        raise RuntimeError("one process and two give different results")
    return compare(f"match: {4 * crystals} pairs, two settings", rates, "pairs/s")


def _end_of_training(dataset: CrystalDataset, rounds: int, generator: torch.Generator) -> list[Row]:
    """Matching after a run: a validation split of this size, under two settings."""
    batch = dataset.batch(torch.arange(len(dataset)))
    moved = moved_crystals(batch, JITTER, generator)

    def variant(matcher: AnyMatcher):
        def run() -> float:
            StructureMatcher._get_reduced_istructure.cache_clear()
            match_batches([batch], [moved], matcher, [CDVAE, PYMATGEN])
            return 1

        return run

    variants = {"pymatgen": variant(MatcherPool(0)), "fast": variant(_alone())}
    rates = alternate(variants, rounds, "end of training")
    name = f"end of training: {len(dataset)} crystals"
    return [
        Row(name, each, 1 / rate, "s", rate / rates["pymatgen"]) for each, rate in rates.items()
    ]


def _alone() -> FastMatcher:
    return FastMatcher(num_workers=0)
