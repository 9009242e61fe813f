"""Draw crystals again in which atoms are too close."""

from collections.abc import Callable
from itertools import product

import torch
from ase.data import covalent_radii
from torch import Tensor

from src.data.schema import CrystalBatch
from src.utils.errors import UserError

CLOSEST = 0.85
"""Distance of two atoms over the sum of their covalent radii, below which a crystal is drawn again.

Some real crystals have closer atoms, too. They lose nothing but time: the attempt in which the
closest are farthest apart is kept."""

Draw = Callable[[CrystalBatch, Tensor], Tensor]
"""Draws latents (N, latent_dim) of some crystals, given their request and their indices (B,)."""


def closest_contacts(crystals: CrystalBatch) -> Tensor:
    """The smallest distance of two atoms over the sum of their covalent radii: (B,), dimensionless.

    The radii are those of ASE (Cordero et al. 2008). Images of an atom are other atoms. Only images
    in the 27 cells around are looked at, which is enough for reduced cells. 0 for a crystal with
    numbers that are not finite.
    """
    radii = torch.as_tensor(covalent_radii, dtype=torch.float32)[crystals.atom_types.cpu()]
    radii = radii.to(crystals.frac_coords.device)
    found = crystals.lattices.new_zeros(len(crystals.num_atoms))
    for n in crystals.num_atoms.unique().tolist():
        those = crystals.num_atoms == n
        atoms = those[crystals.batch]
        x, r = crystals.frac_coords[atoms].view(-1, n, 3), radii[atoms].view(-1, n)
        apart = x[:, :, None] - x[:, None]
        apart = apart - apart.round()
        nearest = apart.new_full(apart.shape[:3], torch.inf)
        for shift in product((-1.0, 0.0, 1.0), repeat=3):
            vectors = torch.einsum("bijx,bxy->bijy", apart + apart.new_tensor(shift),
                                   crystals.lattices[those])  # fmt: skip
            distances = vectors.norm(dim=-1)
            if not any(shift):
                distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
            nearest = torch.minimum(nearest, distances)
        ratios = nearest / (r[:, :, None] + r[:, None])
        found[those] = ratios.flatten(1).min(dim=1).values
    return found.nan_to_num(nan=0.0)


def check_attempts(attempts: int) -> None:
    """Raise a `UserError` unless there is at least one."""
    if attempts < 1:
        raise UserError(f"attempts must be at least 1, not {attempts}")


def select(batch: CrystalBatch, indices: Tensor) -> CrystalBatch:
    """The requests for some of the crystals of a request, in ascending order of `indices`."""
    chosen = torch.zeros_like(batch.num_atoms, dtype=torch.bool)
    chosen[indices] = True
    return CrystalBatch.for_sampling(batch.num_atoms[chosen], batch.atom_types[chosen[batch.batch]])


def draw_apart(
    draw: Draw,
    decode: Callable[[Tensor, CrystalBatch], CrystalBatch],
    request: CrystalBatch,
    attempts: int,
) -> Tensor:
    """Draw latents, and again those of crystals in which atoms are closer than `CLOSEST`.

    Args:
        draw: see `Draw`.
        decode: turns latents and a request into crystals.
        request: the crystals.
        attempts: how often each is drawn at most.

    Returns:
        (N, latent_dim): for each crystal, the first attempt without such atoms or, if there is
        none, the one in which the closest are farthest apart.
    """
    waiting = torch.arange(len(request.num_atoms), device=request.num_atoms.device)
    latents = draw(request, waiting)
    if attempts == 1:
        return latents
    latents = latents.clone()
    closest = closest_contacts(decode(latents, request))
    for _ in range(attempts - 1):
        waiting = (closest < CLOSEST).nonzero().squeeze(1)
        if not len(waiting):
            break
        part = select(request, waiting)
        again = draw(part, waiting)
        found = closest_contacts(decode(again, part))
        better = found > closest[waiting]
        improved = torch.zeros_like(closest, dtype=torch.bool)
        improved[waiting[better]] = True
        latents[improved[request.batch]] = again[better[part.batch]]
        closest[improved] = found[better]
    return latents
