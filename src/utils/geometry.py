"""Cells and periodic differences, as functions of tensors."""

import torch
from torch import Tensor


def lattices_to_parameters(lattices: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths and angles of cells.

    Args:
        lattices: (..., 3, 3) Å, rows a, b, c.

    Returns:
        lengths (..., 3) in Å and angles (..., 3) in radians: alpha between b and c, beta between
        a and c, gamma between a and b.
    """
    lengths = lattices.norm(dim=-1)
    b_c_a = lattices.roll(-1, dims=-2)
    c_a_b = lattices.roll(-2, dims=-2)
    # atan2 keeps its precision where arccos of a cosine near 1 has none
    sine = torch.linalg.cross(b_c_a, c_a_b).norm(dim=-1)
    cosine = (b_c_a * c_a_b).sum(dim=-1)
    return lengths, torch.atan2(sine, cosine)


def parameters_to_lattices(lengths: Tensor, angles: Tensor) -> Tensor:
    """Cells with given lengths and angles: c along z, a in the xz plane, as pymatgen's
    `Lattice.from_parameters` puts them.

    Lengths and angles that no cell can have (as an untrained network predicts them) give a finite
    matrix all the same, a flat cell.

    Args:
        lengths: (..., 3) Å.
        angles: (..., 3) degrees.

    Returns:
        (..., 3, 3) Å, rows a, b, c.
    """
    a, b, c = lengths.unbind(-1)
    radians = angles.deg2rad()
    cos_alpha, cos_beta, cos_gamma = radians.cos().unbind(-1)
    sin_alpha, sin_beta, _ = radians.sin().unbind(-1)
    # gamma*, the angle of the reciprocal cell between a* and b*
    cos_gamma_star = (cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta)
    cos_gamma_star = cos_gamma_star.nan_to_num().clamp(-1, 1)
    sin_gamma_star = (1 - cos_gamma_star**2).sqrt()
    zero = torch.zeros_like(a)
    rows = [
        torch.stack([a * sin_beta, zero, a * cos_beta], dim=-1),
        torch.stack(
            [
                -b * sin_alpha * cos_gamma_star,
                b * sin_alpha * sin_gamma_star,
                b * cos_alpha,
            ],
            dim=-1,
        ),
        torch.stack([zero, zero, c], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def wrapped_difference(frac_coords: Tensor, other: Tensor) -> Tensor:
    """`frac_coords - other`, each component moved by whole cells into [-1/2, 1/2]."""
    difference = frac_coords - other
    return difference - difference.round()


def transform(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Row vectors times matrices, (N, 3) by (N, 3, 3) to (N, 3).

    Written as products and sums, since autocast would run a matrix product in half precision.
    """
    return (vectors[:, :, None] * matrices).sum(dim=1)
