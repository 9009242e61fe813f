"""Stacks of lattices: parameters, reduction, and the bases in which one resembles another.

All functions take lattices as (L, 3, 3) in Å, rows a, b, c. They follow the methods of pymatgen's
`Lattice` that `StructureMatcher` calls, decision by decision and, where ties are common, operation
by operation, because a tie that falls the other way gives another basis.
"""

from typing import NamedTuple

import numpy as np

from src.metrics.structure_matching.arrays import Booleans, Floats, Integers, dot, ragged

_SPHERE_TOLERANCE = 1e-8  # Å^2, pymatgen's
_MAX_LLL_ROUNDS = 1000  # a real cell needs fewer than ten
_MIN_SPHERE = 1.0  # Å: pymatgen looks through a sphere at least this large


def parameters(lattices: Floats) -> tuple[Floats, Floats]:
    """Lengths in Å and angles (alpha, beta, gamma) in degrees, both (L, 3)."""
    lengths = np.sqrt(np.sum(lattices**2, axis=2))
    cosines = np.empty_like(lengths)
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        cosines[:, k] = dot(lattices[:, i], lattices[:, j]) / (lengths[:, i] * lengths[:, j])
    return lengths, np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))


def from_parameters(lengths: Floats, angles: Floats) -> Floats:
    """Lattices with c along z and a in the xz plane; angles in degrees."""
    radians = np.radians(angles)
    cosine, sine = np.cos(radians), np.sin(radians)
    ratio = (cosine[:, 0] * cosine[:, 1] - cosine[:, 2]) / (sine[:, 0] * sine[:, 1])
    gamma_star = np.arccos(np.clip(ratio, -1, 1))
    lattices = np.zeros((len(lengths), 3, 3))
    lattices[:, 0, 0] = lengths[:, 0] * sine[:, 1]
    lattices[:, 0, 2] = lengths[:, 0] * cosine[:, 1]
    lattices[:, 1, 0] = -lengths[:, 1] * sine[:, 0] * np.cos(gamma_star)
    lattices[:, 1, 1] = lengths[:, 1] * sine[:, 0] * np.sin(gamma_star)
    lattices[:, 1, 2] = lengths[:, 1] * cosine[:, 0]
    lattices[:, 2, 2] = lengths[:, 2]
    return lattices


def volumes(lattices: Floats) -> Floats:
    """In Å^3, (L,)."""
    return np.abs(dot(np.cross(lattices[:, 0], lattices[:, 1]), lattices[:, 2]))


def inverse_heights(lattices: Floats) -> Floats:
    """Inverse distances between the planes that a, b and c cross, (L, 3) in 1/Å."""
    crosses = np.empty_like(lattices)
    for k in range(3):
        (x, y, z), (u, v, w) = lattices[:, (k + 1) % 3].T, lattices[:, (k + 2) % 3].T
        crosses[:, k, 0] = y * w - z * v
        crosses[:, k, 1] = z * u - x * w
        crosses[:, k, 2] = x * v - y * u
    volume = np.abs((crosses[:, 0] * lattices[:, 0]).sum(axis=1))
    return np.sqrt((crosses**2).sum(axis=2)) / volume[:, None]


# Reduction after Lenstra, Lenstra and Lovász.


def lll_reduce(lattices: Floats, delta: float = 0.75) -> tuple[Floats, Floats]:
    """LLL-reduced lattices, and the integer matrices that give them from the lattices."""
    a = np.ascontiguousarray(lattices.transpose(0, 2, 1))  # vectors are columns here
    mapping = np.tile(np.eye(3), (len(a), 1, 1))
    b, u = np.zeros_like(a), np.zeros_like(a)  # orthogonalised vectors, their coefficients
    m = np.zeros((len(a), 3))
    everything = np.arange(len(a))
    b[:, :, 0] = a[:, :, 0]
    m[:, 0] = dot(b[:, :, 0], b[:, :, 0])
    for s in (1, 2):
        _orthogonalise(a, b, u, m, everything, s)
    k = np.ones(len(a), dtype=np.int64)  # index of the vector under consideration
    for _ in range(_MAX_LLL_ROUNDS):
        done = True
        for now in (1, 2):
            at = np.flatnonzero(k == now)
            if not len(at):
                continue
            done = False
            for i in range(now - 1, -1, -1):
                q = np.round(u[at, now, i])
                move = q != 0
                if not move.any():
                    continue
                rows, q = at[move], q[move, None]
                a[rows, :, now] -= q * a[rows, :, i]
                mapping[rows, :, now] -= q * mapping[rows, :, i]
                u[rows, now, :i] -= q * u[rows, i, :i]
                u[rows, now, i] -= q[:, 0]
            norm, previous = (dot(b[at, :, s], b[at, :, s]) for s in (now, now - 1))
            good = norm >= (delta - np.abs(u[at, now, now - 1]) ** 2) * previous
            k[at[good]] += 1
            swap = at[~good]
            if not len(swap):
                continue
            for array in (a, mapping):
                array[swap, :, now], array[swap, :, now - 1] = (
                    array[swap, :, now - 1],
                    array[swap, :, now].copy(),
                )
            for s in (now - 1, now):
                _orthogonalise(a, b, u, m, swap, s)
            if now == 2:
                k[swap] = 1
            else:
                product = np.matmul(a[swap][:, None, :, 2], b[swap][:, :, :2])[:, 0]
                u[swap, 2, :2] = _quotients(product, m[swap, :2], u[swap, 1, 0])
        if done:
            break
    return a.transpose(0, 2, 1).copy(), mapping.transpose(0, 2, 1).copy()


def _orthogonalise(a: Floats, b: Floats, u: Floats, m: Floats, rows: Integers, s: int) -> None:
    """Gram-Schmidt for vector `s` of some lattices, in place."""
    vector = a[rows][:, :, s]
    if s:
        before = b[rows][:, :, :s]
        coefficients = np.matmul(vector[:, None, :], before)[:, 0] / m[rows, :s]
        u[rows, s, :s] = coefficients
        vector = vector - np.matmul(before, coefficients[:, :, None])[:, :, 0]
    b[rows, :, s] = vector
    m[rows, s] = dot(vector, vector)


def _quotients(products: Floats, squares: Floats, first: Floats) -> Floats:
    """`products / squares`, (R, 2), as pymatgen rounds it where that decides.

    pymatgen solves a least-squares problem here, one at a time. That differs in the last digit,
    which counts only where a coefficient is about to be rounded at a half, in a symmetric lattice.
    """
    quotients = products / squares
    twelfths = 12 * np.column_stack([quotients, first])
    simple = (np.abs(twelfths - np.round(twelfths)) < 1e-6).any(axis=1)
    whole = (np.abs(twelfths / 12 - np.round(twelfths / 12)) < 1e-6).all(axis=1)
    for i in np.flatnonzero(simple & ~whole):
        solution = np.linalg.lstsq(np.diag(squares[i]), products[i, :, None], rcond=None)
        quotients[i] = solution[0][:, 0]
    return quotients


# Bases in which one lattice resembles another.


class Mappings(NamedTuple):
    """Bases of lattices, in the order in which pymatgen finds them.

    Attributes:
        owner: (M,) which lattice, ascending.
        bases: (M, 3, 3) Å, rows are the new a, b, c.
        determinants: (M,) of the integer matrix that gives the basis from the lattice, not 0.
    """

    owner: Integers
    bases: Floats
    determinants: Floats


def count_images(lattices: Floats, radii: Floats) -> Floats:
    """How many lattice points `find_mappings` looks at, (L,); floats, since they may be many."""
    with np.errstate(all="ignore"):
        reach = np.maximum(radii, _MIN_SPHERE)[:, None] * inverse_heights(lattices)
        return np.prod(2 * np.floor(reach + 1e-3) + 1, axis=1)


def find_mappings(
    lattices: Floats,
    lengths: Floats,
    angles: Floats,
    ltol: Floats,
    atol: float,
    reduced: tuple[Floats, Floats] | None = None,
) -> Mappings:
    """Bases of the lattices with the given lengths and angles (L, 3), within tolerances.

    Args:
        lattices: (L, 3, 3).
        lengths, angles: Wanted, (L, 3) in Å and degrees.
        ltol: (L,) fractional tolerance on lengths.
        atol: Tolerance on angles in degrees.
        reduced: What `lll_reduce` gives, for lattices that may be skewed.
    """
    basis, mapping = (lattices, None) if reduced is None else reduced
    owner, images, distances = _points(lattices, lengths, ltol, basis, mapping)
    # one product for each lattice, because products of many rows are rounded in their own way
    cuts = np.searchsorted(owner, np.arange(len(lattices) + 1)).tolist()
    points = np.empty_like(images)
    for i, lattice in enumerate(lattices):
        points[cuts[i] : cuts[i + 1]] = np.dot(images[cuts[i] : cuts[i + 1]], lattice)
    norms = np.sum(points**2, axis=1) ** 0.5
    tolerance = ltol[owner]
    chosen, counts = [], []
    for k in range(3):
        ratio = distances / lengths[owner, k]
        which = np.flatnonzero((ratio < 1 + tolerance) & (ratio > 1 / (1 + tolerance)))
        chosen.append(which)
        counts.append(np.bincount(owner[which], minlength=len(lattices)))
    starts = [np.cumsum(count) - count for count in counts]

    def pairs(i: int, j: int) -> tuple[Integers, Integers, Integers, Integers, Booleans]:
        """Of the vectors for axes i and j: lattice, places in the lists, angle good or not."""
        size = counts[i] * counts[j]
        lattice, local = ragged(size)
        first = starts[i][lattice] + local // counts[j][lattice]
        second = starts[j][lattice] + local % counts[j][lattice]
        p, q = chosen[i][first], chosen[j][second]
        product = points[p, 0] * points[q, 0]
        product += points[p, 1] * points[q, 1]
        product += points[p, 2] * points[q, 2]
        cosine = np.clip(product / norms[p] / norms[q], -1, 1)
        angle = np.rad2deg(np.arccos(cosine))
        good = np.abs(angle - angles[lattice, 3 - i - j]) <= atol
        return lattice, first, second, np.cumsum(size) - size, good

    lattice, a, b, _, good = pairs(0, 1)
    lattice, a, b = lattice[good], a[good], b[good]
    *_, beta_starts, beta = pairs(0, 2)
    *_, alpha_starts, alpha = pairs(1, 2)
    pair, c = ragged(counts[2][lattice])
    lattice, a, b = lattice[pair], a[pair], b[pair]
    width = counts[2][lattice]
    good = beta[beta_starts[lattice] + (a - starts[0][lattice]) * width + c]
    good &= alpha[alpha_starts[lattice] + (b - starts[1][lattice]) * width + c]
    lattice, a, b, c = lattice[good], a[good], b[good], c[good]
    corners = np.stack([chosen[0][a], chosen[1][b], chosen[2][starts[2][lattice] + c]], axis=1)
    determinants = _determinants(images[corners])
    good = determinants != 0
    return Mappings(lattice[good], points[corners[good]], determinants[good])


def _points(
    lattices: Floats, lengths: Floats, ltol: Floats, reduced: Floats, mapping: Floats | None
) -> tuple[Integers, Floats, Floats]:
    """Lattice points that are about as far from the origin as one of the lengths.

    Args:
        lattices, lengths, ltol: As for `find_mappings`.
        reduced: Other bases of the lattices, in which few points need to be looked at.
        mapping: The integer matrices that give them from the lattices; None if they are the same.

    Returns:
        Of each point: its lattice, its integer coordinates as floats (P, 3), its distance in Å; in
        pymatgen's order, that of a list of cells that are as wide as the sphere.
    """
    radii = lengths.max(axis=1) * (1 + ltol)
    width = np.where(radii < _MIN_SPHERE, _MIN_SPHERE + _SPHERE_TOLERANCE, radii)
    reach = np.floor(width[:, None] * inverse_heights(reduced) + 1e-3).astype(np.int64)
    size = 2 * reach + 1
    owner, local = ragged(size.prod(axis=1))
    depth = size[owner, 2]
    rest, k = local // depth, local % depth
    breadth = size[owner, 1]
    steps = np.stack([rest // breadth, rest % breadth, k], axis=1) - reach[owner]
    if mapping is None:
        images = steps
    else:
        matrices = mapping.astype(np.int64)[owner]
        images = steps[:, 0, None] * matrices[:, 0]
        images += steps[:, 1, None] * matrices[:, 1]
        images += steps[:, 2, None] * matrices[:, 2]
    squares = np.zeros(len(owner))
    place = np.zeros(len(owner), dtype=np.int64)
    edge = width[owner]
    for axis in range(3):
        at = images[:, 0] * lattices[owner, 0, axis]
        at += images[:, 1] * lattices[owner, 1, axis]
        at += images[:, 2] * lattices[owner, 2, axis]
        squares += at * at
        place = 3 * place + np.floor((at + edge + 2 * _SPHERE_TOLERANCE) / edge).astype(np.int64)
    distances = np.sqrt(squares)
    low, high = lengths.min(axis=1) / (1 + ltol), radii
    keep = (distances > low[owner] * (1 - 1e-9)) & (squares < edge**2 + _SPHERE_TOLERANCE)
    keep &= distances <= high[owner] * (1 + 1e-9)
    owner, images, distances = owner[keep], images[keep], distances[keep]
    order = np.lexsort((*-images.T[::-1], place[keep], owner))
    return owner, images[order].astype(np.float64), distances[order]


def _determinants(matrices: Floats) -> Floats:
    """Of integer matrices, exactly."""
    a, b, c = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    return (
        a[:, 0] * (b[:, 1] * c[:, 2] - b[:, 2] * c[:, 1])
        - a[:, 1] * (b[:, 0] * c[:, 2] - b[:, 2] * c[:, 0])
        + a[:, 2] * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    )


# Reduction after Niggli, with the tolerances of Grosse-Kunstleve, Sauter and Adams (2003).


def niggli_reduce(
    lattices: Floats, reduced: Floats, mapping: Floats, tolerance: float = 1e-5
) -> tuple[Floats, Booleans]:
    """Niggli-reduced bases, in the orientation of the given ones, and whether one was found.

    `reduced` and `mapping` are what `lll_reduce` gives for the lattices.
    """
    e = tolerance * volumes(lattices) ** (1 / 3)
    metric = np.matmul(reduced, reduced.transpose(0, 2, 1))
    active = np.arange(len(lattices))
    for _ in range(100):
        if not len(active):
            break
        metric[active], again = _niggli_step(metric[active], e[active])
        active = active[again]
    lengths = np.sqrt(metric[:, [0, 1, 2], [0, 1, 2]])
    with np.errstate(all="ignore"):
        cosines = np.stack(
            [
                metric[:, 1, 2] / lengths[:, 1] / lengths[:, 2],
                metric[:, 0, 2] / lengths[:, 0] / lengths[:, 2],
                metric[:, 0, 1] / lengths[:, 0] / lengths[:, 1],
            ],
            axis=1,
        )
        wanted = from_parameters(lengths, np.degrees(np.arccos(cosines)))
    sane = np.flatnonzero(np.isfinite(wanted).all(axis=(1, 2)))
    found = find_mappings(
        lattices[sane],
        *parameters(wanted[sane]),
        e[sane],
        1.0,
        (reduced[sane], mapping[sane]),
    )
    # the first that keeps the handedness, else the first
    order = np.lexsort((np.arange(len(found.owner)), found.determinants <= 0, found.owner))
    owner, first = np.unique(found.owner[order], return_index=True)
    bases = found.bases[order[first]]
    left = dot(np.cross(bases[:, 0], bases[:, 1]), bases[:, 2]) <= 0
    bases[left] *= -1
    result, done = lattices.copy(), np.zeros(len(lattices), dtype=bool)
    result[sane[owner]], done[sane[owner]] = bases, True
    return result, done


def _niggli_step(metric: Floats, e: Floats) -> tuple[Floats, Booleans]:
    """One round of Křivý and Gruber's steps on metric tensors; which of them need another."""
    metric = metric.copy()
    pending = np.ones(len(metric), dtype=bool)
    again = np.zeros(len(metric), dtype=bool)

    def elements() -> tuple[Floats, ...]:
        g = metric
        return (
            g[:, 0, 0], g[:, 1, 1], g[:, 2, 2], 2 * g[:, 1, 2], 2 * g[:, 0, 2], 2 * g[:, 0, 1],
        )  # fmt: skip

    def apply(which: Booleans, matrices: Floats) -> None:
        g = metric[which]
        metric[which] = np.matmul(matrices.swapaxes(-1, -2), np.matmul(g, matrices))

    a, b, c, xi, eta, zeta = elements()
    swap = (b + e < a) | ((np.abs(a - b) < e) & (np.abs(xi) > np.abs(eta) + e))
    apply(swap, np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]]))
    a, b, c, xi, eta, zeta = elements()
    swap = (c + e < b) | ((np.abs(b - c) < e) & (np.abs(eta) > np.abs(zeta) + e))
    apply(swap, np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]))
    again |= swap
    pending &= ~swap

    _, _, _, xi, eta, zeta = elements()
    signs = np.stack([np.where(np.abs(x) < e, 0, np.sign(x)) for x in (xi, eta, zeta)], axis=1)
    product = signs.prod(axis=1)
    same = np.where(signs == -1, -1.0, 1.0)
    mixed = np.where(signs == 1, -1.0, 1.0)
    odd = mixed.prod(axis=1) == -1
    unset = odd.copy()
    for axis in (2, 1, 0):
        flip = unset & (signs[:, axis] == 0)
        mixed[flip, axis] = -1
        unset &= ~flip
    flips = np.where((product == 1)[:, None], same, mixed)
    apply(pending, (flips[:, :, None] * np.eye(3))[pending])

    def step(condition: Booleans, row: int, column: int, element: Floats) -> None:
        nonlocal pending
        now = pending & condition
        if now.any():
            matrices = np.tile(np.eye(3), (int(now.sum()), 1, 1))
            matrices[:, row, column] = -np.sign(element[now])
            apply(now, matrices)
            again[now] = True
            pending = pending & ~now

    a, b, c, xi, eta, zeta = elements()
    step(
        (np.abs(xi) > b + e)
        | ((np.abs(xi - b) < e) & (zeta - e > 2 * eta))
        | ((np.abs(xi + b) < e) & (-e > zeta)),
        1, 2, xi,
    )  # fmt: skip
    step(
        (np.abs(eta) > a + e)
        | ((np.abs(a - eta) < e) & (zeta - e > 2 * xi))
        | ((np.abs(a + eta) < e) & (-e > zeta)),
        0, 2, eta,
    )  # fmt: skip
    step(
        (np.abs(zeta) > a + e)
        | ((np.abs(a - zeta) < e) & (eta - e > 2 * xi))
        | ((np.abs(a + zeta) < e) & (-e > eta)),
        0, 1, zeta,
    )  # fmt: skip
    total = xi + eta + zeta + a + b
    last = pending & ((-e > total) | ((np.abs(total) < e) & (e < zeta + (a + eta) * 2)))
    apply(last, np.array([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]]))
    again |= last
    return metric, again
