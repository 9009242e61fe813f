"""Pure functions from a batch to a new one: symmetries of a crystal, and corruption noise.

Each takes a `torch.Generator` on the batch's device (None: torch's global one).
"""

import torch
from torch import Tensor

from src.data.schema import CrystalBatch
from src.utils.geometry import transform


def random_translation(
    batch: CrystalBatch, generator: torch.Generator | None = None
) -> CrystalBatch:
    """Move each crystal by its own uniformly random fraction of the cell, wrapped to [0, 1)."""
    shift = torch.rand(
        len(batch.num_atoms), 3, generator=generator, device=batch.frac_coords.device
    )
    moved = batch.frac_coords + shift[batch.batch]
    return batch.replace(frac_coords=moved - moved.floor())


def random_rotations(
    num: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """(num, 3, 3) rotation matrices, uniform over SO(3), from normalised Gaussian quaternions
    (Shoemake 1992, "Uniform random rotations")."""
    quaternions = torch.randn(num, 4, generator=generator, device=device)
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def random_rotation(batch: CrystalBatch, generator: torch.Generator | None = None) -> CrystalBatch:
    """Rotate each crystal's cell; fractional coordinates stay as they are."""
    rotations = random_rotations(len(batch.num_atoms), generator, batch.lattices.device)
    rows = transform(batch.lattices.flatten(0, 1), rotations.mT.repeat_interleave(3, dim=0))
    return batch.replace(lattices=rows.view(-1, 3, 3))


def mask_atom_types(
    batch: CrystalBatch, ratio: float, generator: torch.Generator | None = None
) -> CrystalBatch:
    """Replace each atom's type by the mask token 0 with probability `ratio`."""
    draw = torch.rand(len(batch.atom_types), generator=generator, device=batch.frac_coords.device)
    return batch.replace(atom_types=torch.where(draw < ratio, 0, batch.atom_types))


def jitter_coords(
    batch: CrystalBatch, ratio: float, std: float, generator: torch.Generator | None = None
) -> CrystalBatch:
    """Displace each atom, with probability `ratio`, by Gaussian noise of `std` Å per direction."""
    device = batch.frac_coords.device
    draw = torch.rand(len(batch.atom_types), 1, generator=generator, device=device)
    noise = torch.randn(len(batch.atom_types), 3, generator=generator, device=device) * std
    # row vectors: cart = frac @ lattice, so frac = cart @ lattice^-1
    inverse = torch.linalg.inv_ex(batch.lattices).inverse[batch.batch]
    displacement = transform(noise, inverse)
    return batch.replace(
        frac_coords=batch.frac_coords + torch.where(draw < ratio, displacement, 0.0)
    )
