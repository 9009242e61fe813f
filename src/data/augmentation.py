"""Augment batches of crystals: random symmetry operations and corruption noise.

All functions return a new batch. They take a `torch.Generator` on the device of the batch (None for
torch's global one). When processes share a batch (`CrystalBatch.part`), each crystal gets the same
random numbers as in a single process.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from src.data.schema import CrystalBatch
from src.utils.geometry import transform

Random = Callable[..., Tensor]  # torch.rand or torch.randn


def draw_per_crystal(
    random: Random, batch: CrystalBatch, width: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw random numbers for each crystal with `torch.rand` or `torch.randn`: (B, width)."""
    part = batch.part
    whole = random(part.num_crystals, width, generator=generator, device=batch.frac_coords.device)
    return whole.narrow(0, part.first_crystal, len(batch.num_atoms))


def draw_per_atom(
    random: Random, batch: CrystalBatch, width: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw random numbers for each atom with `torch.rand` or `torch.randn`: (N, width)."""
    part = batch.part
    whole = random(part.num_atoms, width, generator=generator, device=batch.frac_coords.device)
    return whole.narrow(0, part.first_atom, len(batch.batch))


def random_translation(
    batch: CrystalBatch, generator: torch.Generator | None = None
) -> CrystalBatch:
    """Shift each crystal by a uniformly random fraction of its cell; coordinates stay in [0, 1)."""
    shift = draw_per_crystal(torch.rand, batch, 3, generator)
    moved = batch.frac_coords + shift[batch.batch]
    return batch.replace(frac_coords=moved - moved.floor())


def half_translation(batch: CrystalBatch, generator: torch.Generator | None = None) -> CrystalBatch:
    """Shift each crystal by 0 or 1/2 at random along each lattice vector.

    If there is an inversion center at the origin, there is one at all of these points. So atoms on
    special positions keep simple fractions as coordinates.
    """
    shift = draw_per_crystal(torch.rand, batch, 3, generator).round() / 2
    moved = batch.frac_coords + shift[batch.batch]
    return batch.replace(frac_coords=moved - moved.floor())


def quaternions_to_rotations(quaternions: Tensor) -> Tensor:
    """Convert quaternions (num, 4) to rotation matrices (num, 3, 3).

    If the quaternions are Gaussian, the rotations are uniformly distributed over SO(3) (Shoemake
    1992, "Uniform random rotations").
    """
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def random_rotation(batch: CrystalBatch, generator: torch.Generator | None = None) -> CrystalBatch:
    """Rotate the cell of each crystal; fractional coordinates do not change."""
    rotations = quaternions_to_rotations(draw_per_crystal(torch.randn, batch, 4, generator))
    rows = transform(batch.lattices.flatten(0, 1), rotations.mT.repeat_interleave(3, dim=0))
    return batch.replace(lattices=rows.view(-1, 3, 3))


def mask_atom_types(
    batch: CrystalBatch, ratio: float, generator: torch.Generator | None = None
) -> CrystalBatch:
    """Replace the type of each atom by the mask token 0 with probability `ratio`."""
    draw = draw_per_atom(torch.rand, batch, 1, generator).squeeze(1)
    return batch.replace(atom_types=torch.where(draw < ratio, 0, batch.atom_types))


def jitter_coords(
    batch: CrystalBatch, ratio: float, std: float, generator: torch.Generator | None = None
) -> CrystalBatch:
    """Displace each atom with probability `ratio` by Gaussian noise of `std` Å per direction."""
    draw = draw_per_atom(torch.rand, batch, 1, generator)
    noise = draw_per_atom(torch.randn, batch, 3, generator) * std
    # row vectors: cart = frac @ lattice, so frac = cart @ lattice^-1
    inverse = torch.linalg.inv_ex(batch.lattices).inverse[batch.batch]
    displacement = transform(noise, inverse)
    return batch.replace(
        frac_coords=batch.frac_coords + torch.where(draw < ratio, displacement, 0.0)
    )
