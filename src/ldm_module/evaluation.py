"""Judge a latent diffusion model by the crystals that it generates."""

from collections.abc import Iterable, Sequence
from itertools import compress
from operator import and_
from typing import Any, cast

import torch
from pymatgen.core import Structure
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.ldm_module.ldm_module import LDMModule
from src.ldm_module.sampling import generate_crystals
from src.metrics import PreparedCrystals, first_match, match
from src.metrics.generation.evaluate import wasserstein_distances
from src.metrics.generation.validity import invalid_reason, is_valid_composition
from src.metrics.matching import CDVAE, PYMATGEN, summarize
from src.utils.inference import inference

BATCH_SIZE = 512


def evaluate_ldm(
    ldm: LDMModule,
    train: CrystalDataset,
    held_out: CrystalDataset,
    num_samples: int,
    sampling_steps: int,
) -> dict[str, Any]:
    """Figures of generated crystals: `de_novo` of a model that makes up atom types, and
    `structure_prediction` of one that can be given them.

    Each crystal is drawn once (`attempts=1`), so that the model itself is judged.

    Args:
        ldm: the model.
        train: the crystals that novelty is measured against.
        held_out: the crystals that the generated ones are compared with.
        num_samples: how many to generate; in structure prediction, one for each of that many
            crystals of `held_out`, from the first.
        sampling_steps: see `LDMModule.sample`.
    """
    figures: dict[str, Any] = {}
    if ldm.atom_type_input:
        indices = torch.arange(min(num_samples, len(held_out)))
        generated = predict_structures(ldm, held_out, indices, sampling_steps)
        figures |= structure_prediction(generated, _structures([held_out.batch(indices)]))
    if ldm.atom_type_predict:
        batches = generate_crystals(ldm, num_samples, sampling_steps=sampling_steps, attempts=1)
        figures |= de_novo(_structures(batches), _all_of(train), _all_of(held_out))
    return figures


def predict_structures(
    ldm: LDMModule, dataset: CrystalDataset, indices: Tensor, sampling_steps: int
) -> list[Structure]:
    """One sample for the composition of each of some crystals."""
    generator = torch.Generator(ldm.device).manual_seed(0)
    batches = []
    with inference(ldm):
        for part in indices.split(BATCH_SIZE):
            asked = dataset.batch(part)
            made = ldm.sample(asked, sampling_steps, generator=generator, attempts=1)
            batches.append(cast(CrystalBatch, made))
    return _structures(batches)


def structure_prediction(
    generated: Sequence[Structure], originals: Sequence[Structure]
) -> dict[str, Any]:
    """`match_rate` and `rmse` of crystals with those whose compositions they were generated for.

    Crystals are matched as in CDVAE, and invalid ones count too.
    """
    summary = summarize(match(generated, originals, CDVAE), CDVAE)
    valid = [invalid_reason(crystal) is None for crystal in generated]
    return {
        "num_samples": len(generated),
        "valid_structure": sum(valid) / len(valid),
        "match_rate": summary.match_rate,
        "rmse": summary.rmse,
    }


def de_novo(
    generated: Sequence[Structure], known: Sequence[Structure], held_out: Sequence[Structure]
) -> dict[str, Any]:
    """Validity, uniqueness, novelty and distances, as `evaluate_generated` defines them.

    There are no fingerprints, which take minutes, and so no coverage.
    """
    is_valid = [invalid_reason(crystal) is None for crystal in generated]
    valid = list(compress(generated, is_valid))
    sensible = [is_valid_composition(crystal.composition) for crystal in generated]
    both = list(compress(generated, map(and_, is_valid, sensible)))
    prepared = PreparedCrystals(valid)
    return {
        "num_samples": len(generated),
        "valid_structure": len(valid) / len(generated),
        "valid_composition": sum(sensible) / len(generated),
        "valid": len(both) / len(generated),
        "unique": _share_without_match(prepared, None),
        "novel": _share_without_match(prepared, PreparedCrystals(known)),
        **wasserstein_distances(both, held_out),
    }


def _share_without_match(
    crystals: PreparedCrystals, references: PreparedCrystals | None
) -> float | None:
    """Share of crystals that match none of the references; None: none of those before them."""
    found = first_match(crystals, references, PYMATGEN)
    return sum(each.reference is None for each in found) / len(found) if found else None


def _all_of(dataset: CrystalDataset) -> list[Structure]:
    return dataset.batch(torch.arange(len(dataset))).to_structure()


def _structures(batches: Iterable[CrystalBatch]) -> list[Structure]:
    return [structure for batch in batches for structure in batch.to("cpu").to_structure()]
