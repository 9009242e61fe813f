"""Shortest vectors between points of many lattices, summed in pymatgen's order."""

import itertools
from collections.abc import Sequence

import numpy as np

from src.metrics.structure_matching.arrays import Floats, Integers

CELLS = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))


def cartesian(coords: Floats, lattices: Floats) -> Floats:
    """Fractions (M, 3) of lattices (M, 3, 3) in Å, summed in pymatgen's order."""
    result = coords[:, 0, None] * lattices[:, 0]
    result += coords[:, 1, None] * lattices[:, 1]
    result += coords[:, 2, None] * lattices[:, 2]
    return result


def images_of(lattices: Floats) -> Floats:
    """The (27, 3) nearest lattice points of each lattice, in pymatgen's order."""
    cells = np.tile(CELLS, (len(lattices), 1))
    return cartesian(cells, np.repeat(lattices, 27, axis=0)).reshape(-1, 27, 3)


def shortest_images(vectors: Floats, images: Floats) -> Floats:
    """The first shortest of the vectors (M, 3) plus one of their images (M, 27, 3)."""
    candidates = vectors[:, None] + images
    x, y, z = candidates[..., 0], candidates[..., 1], candidates[..., 2]
    best = np.argmin(x * x + y * y + z * z, axis=1)
    return candidates[np.arange(len(vectors)), best]


def squared_distances(
    between: Sequence[Floats], lattices: Floats, basis: Integers, counts: Integers
) -> tuple[Floats, Floats]:
    """Squared lengths of the shortest of 27 images, and of the shortest lattice vectors.

    Args:
        between: Three arrays of the entries of all trials, fractions of the lattice.
        lattices: (C, 3, 3) Å.
        basis: (K,) the lattice of each trial.
        counts: (K,) entries of each trial.

    Returns:
        Of the entries, and (C,), in Å^2.
    """
    metric = np.matmul(lattices, lattices.transpose(0, 2, 1))
    g = {(i, j): np.repeat(metric[basis, i, j], counts) for i in range(3) for j in range(i, 3)}
    x, y, z = between
    u = g[0, 0] * x
    u += g[0, 1] * y
    u += g[0, 2] * z
    v = g[0, 1] * x
    v += g[1, 1] * y
    v += g[1, 2] * z
    w = g[0, 2] * x
    w += g[1, 2] * y
    w += g[2, 2] * z
    squares = x * u
    squares += y * v
    squares += z * w
    # |d + k|^2 = |d|^2 + 2 k.d + |k|^2, for k and -k at once
    gain = np.zeros_like(squares)
    shortest = np.full(len(lattices), np.inf)
    plane = {(1, 0): u, (0, 1): v, (1, 1): u + v, (1, -1): u - v}
    for cell in CELLS[14:]:
        norm = np.matmul(np.matmul(metric, cell), cell)
        np.minimum(shortest, norm, out=shortest)
        i, j, k = cell
        if not i and not j:
            along = np.abs(w)
        elif not k:
            along = np.abs(plane[i, j])
        else:
            along = plane[i, j] + w if k > 0 else plane[i, j] - w
            np.abs(along, out=along)
        along *= -2
        along += np.repeat(norm[basis], counts)
        np.minimum(gain, along, out=gain)
    squares += gain
    return squares, shortest
