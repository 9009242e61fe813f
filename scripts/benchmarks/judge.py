"""How many crystals each part of the judge does in a second of processor time, in one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from pymatgen.core import Structure
from rich.console import Console

from benchmarks import Row, Variant, alternate, compare
from benchmarks.match import JITTER, moved_crystals
from src.data.crystal import Crystal
from src.data.dataset import CrystalDataset
from src.data.structures import to_crystal
from src.data.symmetrize import symmetrize_crystal
from src.metrics import PreparedCrystals, match
from src.metrics.generation import validity
from src.metrics.generation.descriptors import describe
from src.metrics.generation.prototypes import has_known_prototype
from src.metrics.generation.stability import find_potential, relax, single_point
from src.metrics.generation.stability.potentials import open_calculator
from src.metrics.matching import PYMATGEN, FastMatcher
from src.utils.errors import UserError

TOLERANCE = 0.1  # Å, of symmetrize
NUM_BY_MATMINER = 16  # crystals with fingerprints by matminer, which takes long
NUM_ENERGIES = 64
NUM_RELAXED = 4
POTENTIAL = "chgnet"


def run(dataset: CrystalDataset, crystals: int, rounds: int) -> list[Row]:
    """The rate of each part.

    Crystals of the data set, slightly displaced, stand for generated ones.

    Args:
        dataset: what they are drawn from, and compared with.
        crystals: how many, but for the parts that take long.
        rounds: see `alternate`.
    """
    generator = torch.Generator().manual_seed(0)
    batch = dataset.batch(torch.randint(len(dataset), (crystals,), generator=generator))
    known = batch.to_structure()
    structures = moved_crystals(batch, JITTER, generator).to_structure()
    arrays = [to_crystal(structure) for structure in structures]
    parts: dict[tuple[str, str], Variant] = {
        ("validity", "crystals/s"): partial(_validity, structures),
        ("densities, cells, space groups", "crystals/s"): partial(_describe, structures),
        ("matching", "pairs/s"): partial(_match, structures, known),
        ("known prototypes", "crystals/s"): partial(_prototypes, structures, known),
        ("symmetrize", "crystals/s"): partial(
            _each, partial(symmetrize_crystal, tolerance=TOLERANCE), arrays
        ),
    }
    rows = _rates(f"judge: {crystals:,} crystals", parts, rounds)
    return rows + _fingerprints(structures, rounds) + _energies(arrays, rounds)


def _rates(bench: str, parts: Mapping[tuple[str, str], Variant], rounds: int) -> list[Row]:
    variants = {name: part for (name, _), part in parts.items()}
    rates = alternate(variants, rounds, bench, clock=time.process_time)
    return [Row(bench, name, rates[name], unit) for name, unit in parts]


def _each(function: Callable[[Crystal], object], crystals: Sequence[Crystal]) -> float:
    for crystal in crystals:
        function(crystal)
    return len(crystals)


def _validity(structures: Sequence[Structure]) -> float:
    """Of structures and compositions, without those of earlier rounds."""
    validity._is_valid_formula.cache_clear()
    for structure in structures:
        validity.invalid_reason(structure)
        validity.is_valid_composition(structure.composition)
    return len(structures)


def _describe(structures: Sequence[Structure]) -> float:
    return len(describe(structures))


def _match(structures: Sequence[Structure], known: Sequence[Structure]) -> float:
    match(structures, PreparedCrystals(known), PYMATGEN, num_workers=0)
    return len(structures)


def _prototypes(structures: Sequence[Structure], known: Sequence[Structure]) -> float:
    has_known_prototype(structures, known, FastMatcher(num_workers=0))
    return len(structures)


def _fingerprints(structures: Sequence[Structure], rounds: int) -> list[Row]:
    try:
        from src.metrics.generation import fingerprints
    except ImportError:
        return _skipped("fingerprints", "matminer is not installed (the extra generation)")

    def ours() -> float:
        return len([fingerprints.fingerprint(structure) for structure in structures])

    def by_matminer() -> float:
        few = structures[:NUM_BY_MATMINER]
        for structure in few:
            for i in range(len(structure)):
                fingerprints._SITE.featurize(structure, i)
        return len(few)

    variants: dict[str, Variant] = {
        "CrystalNN alone, by matminer": by_matminer,
        "CrystalNN, Magpie and AMD": ours,
    }
    rates = alternate(variants, rounds, "fingerprints", warm_up=False, clock=time.process_time)
    return compare("judge: fingerprints", rates, "crystals/s")


def _energies(crystals: Sequence[Crystal], rounds: int) -> list[Row]:
    try:
        potential = find_potential(POTENTIAL)
    except UserError as error:
        return _skipped("energies and relaxations", str(error))
    calculator = open_calculator(POTENTIAL)
    parts: dict[tuple[str, str], Variant] = {
        ("energies with forces and stress", "crystals/s"): partial(
            _each, partial(single_point, calculator=calculator), crystals[:NUM_ENERGIES]
        ),
        ("relaxations", "crystals/s"): partial(
            _each, partial(relax, calculator=calculator), crystals[:NUM_RELAXED]
        ),
    }
    return _rates(f"judge: {potential.title}", parts, rounds)


def _skipped(part: str, reason: str) -> list[Row]:
    Console().print(f"{part} are left out: {reason}")
    return []
