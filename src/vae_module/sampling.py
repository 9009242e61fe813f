"""Sample crystals: draw sizes or choose compositions, draw latents, and decode them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from src.data.compositions import parse_composition
from src.data.schema import CrystalBatch
from src.utils.errors import UserError
from src.utils.inference import inference
from src.vae_module.datasets import decode_latents
from src.vae_module.elements import find_unknown
from src.vae_module.vae_module import VAEModule

log = logging.getLogger(__name__)

# returns the atom types (n,) of a sample, given its index; 0 if the model predicts them
ContentSampler = Callable[[int, np.random.Generator], np.ndarray]

# draws the latents (N, latent_dim), float32, of the crystals in a batch, with one random generator
# per crystal
LatentSampler = Callable[[CrystalBatch, Sequence[np.random.Generator]], Tensor]

# returns the batch with atom types in place of those that are 0
TypeSampler = Callable[[CrystalBatch, Sequence[np.random.Generator]], CrystalBatch]

# turns latents (N, latent_dim) and their request into crystals
Decode = Callable[[Tensor, CrystalBatch], CrystalBatch]


def sample_crystals(
    vae: VAEModule,
    num_samples: int,
    num_atoms: int | Sequence[int] | None = None,
    compositions: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 512,
    draw_latents: LatentSampler | None = None,
    indices: range | None = None,
    draw_types: TypeSampler | None = None,
    decode: Decode | None = None,
) -> Iterator[CrystalBatch]:
    """Draw sizes or compositions, draw a latent for each atom, and decode.

    A sample depends only on the seed and its index. It does not depend on the number of samples or,
    apart from rounding errors, on the batch size.

    Args:
        vae: the model.
        num_samples: total number of samples.
        num_atoms: number of atoms in each crystal, if atom types are predicted or drawn: a number,
            or a list to draw from for each crystal; None: draw from the training distribution.
        compositions: formulas of whole cells, for a model that can be given atom types: SrTiO3
            has 5 atoms, 4*SrTiO3 has 20. Sample i gets formula i modulo their number, so the counts
            differ by at most one.
        seed: random seed, not negative.
        batch_size: crystals decoded at a time.
        draw_latents: draws the latents; None: `standard_normal`.
        indices: which of the samples to draw; None: all of them.
        draw_types: draws atom types where no composition is given, before the latents. None: the
            VAE predicts them, or compositions must be given.
        decode: turns latents into crystals; None: `decode_latents` with the VAE.

    Returns:
        An iterator over batches on the CPU, in the order of the samples.

    Raises:
        UserError: if a number is less than 1 or `seed` is negative; if there are more compositions
            than samples; if `compositions` is invalid, missing, or given for a model that predicts
            atom types; or if `num_atoms` is given for a model that takes compositions, or missing
            and the checkpoint does not record its training set.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if seed < 0:
        raise UserError(f"seed must not be negative, but it is {seed}")
    if vae.atom_type_predict if draw_types is None else compositions is None:
        if compositions is not None:
            raise UserError(
                "this model predicts atom types and takes no compositions: leave them out, or use "
                "a model trained with experiment=.../vae_csp"
            )
        draw_content = _size_sampler(vae, num_atoms)
    else:
        if num_atoms is not None:
            raise UserError(
                "this model takes compositions, which determine the number of atoms: leave out "
                "num_atoms"
            )
        draw_content = _composition_sampler(vae, compositions, num_samples)
    draw_latents = draw_latents or standard_normal(vae.latent_dim)
    indices = range(num_samples) if indices is None else indices
    decode = decode or partial(decode_latents, vae)
    return _sample(vae, indices, draw_content, draw_types, draw_latents, decode, seed, batch_size)


def _size_sampler(vae: VAEModule, num_atoms: int | Sequence[int] | None) -> ContentSampler:
    if num_atoms is not None:
        counts = dict(Counter(np.atleast_1d(num_atoms).tolist()))
    elif vae.training_set:
        counts = {int(n): count for n, count in vae.training_set["num_atoms"].items()}
    else:
        raise UserError(
            "the checkpoint does not record how many atoms the training crystals have: set "
            "num_atoms to a number or a list"
        )
    if not counts or any(not isinstance(n, int) or n < 1 for n in counts):
        raise UserError(f"num_atoms must be a positive integer or a list of them, not {num_atoms}")
    _warn_beyond_training(vae, max(counts), ())
    sizes = np.array(list(counts))
    shares = np.array(list(counts.values())) / sum(counts.values())

    def draw(_: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(rng.choice(sizes, p=shares), dtype=np.int64)

    return draw


def _composition_sampler(
    vae: VAEModule, compositions: Sequence[str] | None, num_samples: int
) -> ContentSampler:
    if not compositions:
        raise UserError(
            "this model does not predict atom types: set compositions, either as a list "
            "([NaCl,SrTiO3]) or to a file with one formula per line"
        )
    if num_samples < len(compositions):
        raise UserError(f"{num_samples} samples are too few for {len(compositions)} compositions")
    cells = [parse_composition(formula) for formula in compositions]
    for formula, cell in zip(compositions, cells, strict=True):
        if found := find_unknown(torch.from_numpy(cell), vae.decoder):
            raise UserError(f"composition {formula}: {found[1]}")
    elements = {int(number) for cell in cells for number in cell}
    _warn_beyond_training(vae, max(map(len, cells)), elements)
    return lambda index, _: cells[index % len(cells)]


def _warn_beyond_training(vae: VAEModule, num_atoms: int, elements: Iterable[int]) -> None:
    """Say if larger crystals or other elements are asked for than the model was trained on."""
    if not vae.training_set:
        return
    largest = max(map(int, vae.training_set["num_atoms"]))
    if num_atoms > largest:
        log.warning(
            "Crystals of up to %d atoms are asked for, but the model was trained on up to %d: do "
            "not expect good ones of more",
            num_atoms, largest,
        )  # fmt: skip
    if unseen := sorted(set(elements) - set(map(int, vae.training_set["elements"]))):
        names = ", ".join(chemical_symbols[number] for number in unseen)
        log.warning("No crystal that the model was trained on has %s", names)


def standard_normal(latent_dim: int) -> LatentSampler:
    """Draw latents from the standard normal distribution, the prior of a VAE."""

    def draw(request: CrystalBatch, sources: Sequence[np.random.Generator]) -> Tensor:
        shapes = [(n, latent_dim) for n in request.num_atoms.tolist()]
        drawn = [
            source.standard_normal(shape, dtype=np.float32)
            for source, shape in zip(sources, shapes, strict=True)
        ]
        return torch.from_numpy(np.concatenate(drawn))

    return draw


def _sample(
    vae: VAEModule,
    wanted: range,
    draw_content: ContentSampler,
    draw_types: TypeSampler | None,
    draw_latents: LatentSampler,
    decode: Decode,
    seed: int,
    batch_size: int,
) -> Iterator[CrystalBatch]:
    for start in range(0, len(wanted), batch_size):
        indices = wanted[start : start + batch_size]
        sources = [np.random.default_rng([seed, index]) for index in indices]
        contents = [draw_content(*pair) for pair in zip(indices, sources, strict=True)]
        request = CrystalBatch.for_sampling(
            torch.tensor([len(atom_types) for atom_types in contents]),
            torch.from_numpy(np.concatenate(contents)),
        )
        with inference(vae):
            if draw_types is not None:
                request = draw_types(request, sources)
            latents = draw_latents(request, sources).to(vae.device)
            crystals = decode(latents, request.to(vae.device))
        yield crystals.to("cpu")
