"""Convert cells to and from lengths and angles, and compute periodic differences of coordinates."""

import torch
from torch import Tensor


def lattices_to_parameters(lattices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the lengths and angles of cells.

    Args:
        lattices: (..., 3, 3) Å, rows a, b, c.

    Returns:
        lengths (..., 3) in Å and angles (..., 3) in radians: alpha between b and c, beta between
        a and c, gamma between a and b.
    """
    lengths = lattices.norm(dim=-1)
    b_c_a = lattices.roll(-1, dims=-2)
    c_a_b = lattices.roll(-2, dims=-2)
    # atan2 is accurate for small angles, arccos of a cosine near 1 is not
    sine = torch.linalg.cross(b_c_a, c_a_b).norm(dim=-1)
    cosine = (b_c_a * c_a_b).sum(dim=-1)
    return lengths, torch.atan2(sine, cosine)


def parameters_to_lattices(lengths: Tensor, angles: Tensor) -> Tensor:
    """Compute cells from lengths and angles, with c along z and a in the xz plane.

    This is the orientation of pymatgen's `Lattice.from_parameters`. Angles that are impossible for
    a cell (as an untrained network may predict) give a flat cell; its matrix is finite.

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
    # gamma*: the angle between a* and b* of the reciprocal cell
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
    """`frac_coords - other`, with each component shifted by an integer into [-1/2, 1/2]."""
    difference = frac_coords - other
    return difference - difference.round()


def transform(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Multiply row vectors (N, 3) by matrices (N, 3, 3): (N, 3).

    This uses elementwise products, because autocast would run a matrix product in half precision.
    """
    return (vectors[:, :, None] * matrices).sum(dim=1)
