"""The innermost loops of the search, compiled by Numba where it can be imported.

It does for each trial what `trials` does with arrays, several times as fast. What it cannot
decide without a doubt, because two choices are equally good within rounding, it leaves to those
arrays, which follow pymatgen's order of operations.
"""

import math

import numpy as np
from numba import njit

RMS, VERDICT, FIT = 0, 1, 2

_FORBIDDEN = 1e20
_TIE = 1e-8
_PERFECT = 1e-5


@njit(cache=True)
def evaluate(
    owner,
    basis_starts,
    moving,
    reduced_moving,
    target,
    atom_starts,
    num_atoms,
    kind_starts,
    num_kinds,
    sizes,
    to_reduced,
    lattices,
    near,
    near_reduced,
    normalization,
    trial_starts,
    best,
    goal,
    perfect,
    rms,
    largest,
    unsure,
):
    """Fill in the rms and the largest displacement of each trial, and whether to doubt them.

    Args:
        owner: (C,) the pair of each basis.
        basis_starts: (C,) where the atoms of the first crystal begin for each basis.
        moving: Atoms of the first crystal for each basis, fractions of it.
        reduced_moving: The same as fractions of the LLL-reduced average lattices, 0 to 1.
        target: Atoms of the second crystals.
        atom_starts, num_atoms: (B,) where they begin, and how many there are.
        kind_starts, num_kinds: (B,) where the kinds of a pair begin in `sizes`, and how many.
        sizes: Atoms of each kind.
        to_reduced: (C, 3, 3) takes fractions of a basis to those of the reduced average lattice.
        lattices: (C, 3, 3) these lattices in Å.
        near, near_reduced: (C, 3) how far partners may be apart, in fractions of either.
        normalization: (C,) inverse of the free length of an atom, 1/Å.
        trial_starts: (C,) where the trials of a basis begin.
        best: (B,) the least rms so far, or what it has to be below; filled.
        goal: RMS for the least rms; VERDICT to stop at the first trial whose rms is below `best`;
            FIT to stop at the first whose largest displacement is.
        perfect: (B,) pairs that need no further look; filled.
        rms, largest: (K,) filled, infinite where an atom has no partner or another trial is better.
        unsure: (K,) filled.
    """
    most = num_atoms.max()
    moved, second = np.empty((most, 3)), np.empty((most, 3))
    start, end, vectors = np.empty((most, 3)), np.empty((most, 3)), np.empty((most, 3))
    cost, columns = np.empty((most, most)), np.empty(most, dtype=np.int64)
    images, norms, metric = np.empty((27, 3)), np.empty(13), np.empty((3, 3))
    for c in range(len(owner)):
        pair = owner[c]
        n, a, f = num_atoms[pair], atom_starts[pair], basis_starts[c]
        first_kind, last_kind = kind_starts[pair], kind_starts[pair] + num_kinds[pair]
        prepared = False
        shortest = 0.0
        for t in range(sizes[first_kind]):
            trial = trial_starts[c] + t
            rms[trial] = largest[trial] = np.inf
            unsure[trial] = False
            if perfect[pair]:
                continue
            shift_x = moving[f + t, 0] - target[a, 0]
            shift_y = moving[f + t, 1] - target[a, 1]
            shift_z = moving[f + t, 2] - target[a, 2]
            for i in range(n):
                moved[i, 0] = target[a + i, 0] + shift_x
                moved[i, 1] = target[a + i, 1] + shift_y
                moved[i, 2] = target[a + i, 2] + shift_z
            if not _have_partners(moved, moving, f, near, c, sizes, first_kind, last_kind):
                continue
            if not prepared:
                prepared = True
                shortest = _prepare(lattices[c], images, norms, metric)
                for j in range(n):
                    _to_cartesian(reduced_moving, f + j, lattices, c, end, j)
            # More than this sum of squares is of no use: the best so far, or what is allowed.
            limit = n * (best[pair] / normalization[c]) ** 2 * (1 + 1e-9) + 1e-12
            # It cannot get smaller than what the atoms assigned so far have about their own mean.
            sum_x = sum_y = sum_z = squares = mean = part = 0.0
            known = 0
            offset = 0
            useful = True
            doubt = False
            for kind in range(first_kind, last_kind):
                size = sizes[kind]
                for i in range(offset, offset + size):
                    for k in range(3):
                        x = moved[i, 0] * to_reduced[c, 0, k]
                        x += moved[i, 1] * to_reduced[c, 1, k]
                        x += moved[i, 2] * to_reduced[c, 2, k]
                        second[i, k] = x - math.floor(x)
                    _to_cartesian(second, i, lattices, c, start, i)
                    least = np.inf
                    for j in range(size):
                        square = _squared_distance(
                            reduced_moving,
                            f + offset + j,
                            second,
                            i,
                            near_reduced,
                            lattices,
                            c,
                            metric,
                            norms,
                            shortest,
                        )
                        cost[i - offset, j] = square
                        least = min(least, square)
                    # However it is assigned, this atom's distance from the mean adds so much.
                    beyond = math.sqrt(max(least, 0.0)) - mean
                    if least > 0.5 * _FORBIDDEN or (
                        beyond > 0 and part + beyond * beyond * known / (known + 1) > limit
                    ):
                        useful = False
                        break
                if not useful:
                    break
                doubtful = _assign(cost, size, columns)
                doubt |= doubtful
                for i in range(size):
                    j = columns[i]
                    if cost[i, j] > 0.5 * _FORBIDDEN:
                        useful = False
                        break
                    _shortest(
                        reduced_moving,
                        f + offset + j,
                        second,
                        offset + i,
                        end,
                        offset + j,
                        start,
                        images,
                        shortest,
                        vectors,
                    )
                    if not doubtful:
                        x, y, z = (
                            vectors[offset + i, 0],
                            vectors[offset + i, 1],
                            vectors[offset + i, 2],
                        )
                        sum_x, sum_y, sum_z = sum_x + x, sum_y + y, sum_z + z
                        squares += x * x + y * y + z * z
                        known += 1
                if not useful:
                    break
                offset += size
                if known:
                    square = sum_x * sum_x + sum_y * sum_y + sum_z * sum_z
                    mean = math.sqrt(square) / known
                    part = squares - square / known
                    if part > limit:
                        useful = False
                        break
            if not useful:
                continue
            unsure[trial] = doubt
            mean_x = mean_y = mean_z = 0.0
            for i in range(n):
                mean_x += vectors[i, 0]
                mean_y += vectors[i, 1]
                mean_z += vectors[i, 2]
            mean_x, mean_y, mean_z = mean_x / n, mean_y / n, mean_z / n
            total = highest = 0.0
            for i in range(n):
                x, y, z = vectors[i, 0] - mean_x, vectors[i, 1] - mean_y, vectors[i, 2] - mean_z
                square = x * x + y * y + z * z
                total += square
                highest = max(highest, square)
            rms[trial] = math.sqrt(total / n) * normalization[c]
            largest[trial] = math.sqrt(highest) * normalization[c]
            if doubt:
                continue
            if goal == FIT:
                perfect[pair] = largest[trial] < best[pair]
            elif goal == VERDICT:
                perfect[pair] = rms[trial] < best[pair]
            else:
                best[pair] = min(best[pair], rms[trial])
                perfect[pair] = rms[trial] < _PERFECT


@njit(cache=True)
def _have_partners(moved, moving, f, near, c, sizes, first_kind, last_kind):
    limit_x, limit_y, limit_z = near[c, 0], near[c, 1], near[c, 2]
    if limit_x >= 0.5 and limit_y >= 0.5 and limit_z >= 0.5:
        return True
    offset = 0
    for kind in range(first_kind, last_kind):
        size = sizes[kind]
        for i in range(offset, offset + size):
            found = False
            for j in range(f + offset, f + offset + size):
                x = moved[i, 0] - moving[j, 0]
                y = moved[i, 1] - moving[j, 1]
                z = moved[i, 2] - moving[j, 2]
                if (
                    abs(x - np.rint(x)) <= limit_x
                    and abs(y - np.rint(y)) <= limit_y
                    and abs(z - np.rint(z)) <= limit_z
                ):
                    found = True
                    break
            if not found:
                return False
        offset += size
    return True


@njit(cache=True)
def _to_cartesian(coords, i, lattices, c, out, j):
    for k in range(3):
        x = coords[i, 0] * lattices[c, 0, k]
        x += coords[i, 1] * lattices[c, 1, k]
        x += coords[i, 2] * lattices[c, 2, k]
        out[j, k] = x


@njit(cache=True)
def _prepare(lattice, images, norms, metric):
    """Fill in 27 lattice points, squared lengths of 13, and the metric; the least of the 13."""
    for i in range(3):
        for j in range(3):
            metric[i, j] = (
                lattice[i, 0] * lattice[j, 0]
                + lattice[i, 1] * lattice[j, 1]
                + lattice[i, 2] * lattice[j, 2]
            )
    image = 0
    shortest = np.inf
    for i in range(-1, 2):
        for j in range(-1, 2):
            for k in range(-1, 2):
                square = 0.0
                for axis in range(3):
                    x = i * lattice[0, axis]
                    x += j * lattice[1, axis]
                    x += k * lattice[2, axis]
                    images[image, axis] = x
                    square += x * x
                if image > 13:
                    norms[image - 14] = square
                    shortest = min(shortest, square)
                image += 1
    return shortest


@njit(cache=True)
def _squared_distance(first, j, second, i, near, lattices, at, metric, norms, shortest):
    """Between two points, to the nearest of 27 images; or pymatgen's for what is not near."""
    a = first[j, 0] - second[i, 0]
    b = first[j, 1] - second[i, 1]
    c = first[j, 2] - second[i, 2]
    p, q, r = a - np.rint(a), b - np.rint(b), c - np.rint(c)
    if abs(p) > near[at, 0] or abs(q) > near[at, 1] or abs(r) > near[at, 2]:
        return _FORBIDDEN
    x = p * lattices[at, 0, 0] + q * lattices[at, 1, 0] + r * lattices[at, 2, 0]
    y = p * lattices[at, 0, 1] + q * lattices[at, 1, 1] + r * lattices[at, 2, 1]
    z = p * lattices[at, 0, 2] + q * lattices[at, 1, 2] + r * lattices[at, 2, 2]
    square = x * x + y * y + z * z
    if square < 0.2499 * shortest:
        return square
    # |d + k|^2 = |d|^2 + 2 k.d + |k|^2, for k and -k at once
    u = 2 * (metric[0, 0] * a + metric[0, 1] * b + metric[0, 2] * c)
    v = 2 * (metric[0, 1] * a + metric[1, 1] * b + metric[1, 2] * c)
    w = 2 * (metric[0, 2] * a + metric[1, 2] * b + metric[2, 2] * c)
    gain = min(0.0, norms[0] - abs(w))
    gain = min(gain, norms[1] - abs(v - w))
    gain = min(gain, norms[2] - abs(v))
    gain = min(gain, norms[3] - abs(v + w))
    gain = min(gain, norms[4] - abs(u - v - w))
    gain = min(gain, norms[5] - abs(u - v))
    gain = min(gain, norms[6] - abs(u - v + w))
    gain = min(gain, norms[7] - abs(u - w))
    gain = min(gain, norms[8] - abs(u))
    gain = min(gain, norms[9] - abs(u + w))
    gain = min(gain, norms[10] - abs(u + v - w))
    gain = min(gain, norms[11] - abs(u + v))
    gain = min(gain, norms[12] - abs(u + v + w))
    return 0.5 * (a * u + b * v + c * w) + gain


@njit(cache=True)
def _shortest(first, j, second, i, end, at, start, images, shortest, out):
    """Fill in the first shortest of the vectors between two points and their images."""
    x, y, z = end[at, 0] - start[i, 0], end[at, 1] - start[i, 1], end[at, 2] - start[i, 2]
    a = 1 - int(np.rint(first[j, 0] - second[i, 0]))
    b = 1 - int(np.rint(first[j, 1] - second[i, 1]))
    c = 1 - int(np.rint(first[j, 2] - second[i, 2]))
    image = 9 * a + 3 * b + c
    u, v, w = x + images[image, 0], y + images[image, 1], z + images[image, 2]
    if u * u + v * v + w * w > 0.2499 * shortest:  # else no other can be as short
        best = np.inf
        for k in range(27):
            u, v, w = x + images[k, 0], y + images[k, 1], z + images[k, 2]
            square = u * u + v * v + w * w
            if square < best:
                best, image = square, k
    out[i, 0], out[i, 1], out[i, 2] = (
        x + images[image, 0],
        y + images[image, 1],
        z + images[image, 2],
    )


@njit(cache=True)
def _assign(cost, size, columns):
    """Fill in the columns whose sum is least; whether another choice is as good."""
    if size == 1:
        columns[0] = 0
        return False
    if size == 2:
        straight, crossed = cost[0, 0] + cost[1, 1], cost[0, 1] + cost[1, 0]
        columns[0] = 0 if straight <= crossed else 1
        columns[1] = 1 - columns[0]
        return abs(straight - crossed) < _TIE
    # each row's least is the best choice if no two rows have the same
    taken = np.zeros(size, dtype=np.bool_)
    distinct = True
    doubt = False
    for i in range(size):
        least, second, column = np.inf, np.inf, 0
        for j in range(size):
            x = cost[i, j]
            if x < least:
                least, second, column = x, least, j
            elif x < second:
                second = x
        columns[i] = column
        if second - least < _TIE:
            doubt = True
        if taken[column]:
            distinct = False
            break
        taken[column] = True
    if distinct and not doubt:
        return False
    return _assign_by_paths(cost, size, columns)


@njit(cache=True)
def _assign_by_paths(cost, size, columns):
    """The same for any costs, by shortest augmenting paths."""
    u, v = np.zeros(size), np.zeros(size)
    row_of = np.full(size, -1)
    for i in range(size):
        columns[i] = -1
    distance, before = np.empty(size), np.empty(size, dtype=np.int64)
    for new in range(size):
        seen_rows, seen = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
        distance[:] = np.inf
        row, sink, least = new, -1, 0.0
        while sink == -1:
            seen_rows[row] = True
            nearest, lowest = -1, np.inf
            for j in range(size):
                if seen[j]:
                    continue
                reach = least + cost[row, j] - u[row] - v[j]
                if reach < distance[j]:
                    distance[j], before[j] = reach, row
                if distance[j] < lowest or (distance[j] == lowest and row_of[j] == -1):
                    nearest, lowest = j, distance[j]
            least = lowest
            seen[nearest] = True
            if row_of[nearest] == -1:
                sink = nearest
            else:
                row = row_of[nearest]
        u[new] += least
        for i in range(size):
            if seen_rows[i] and i != new:
                u[i] += least - distance[columns[i]]
        for j in range(size):
            if seen[j]:
                v[j] -= least - distance[j]
        column = sink
        while True:
            row = before[column]
            row_of[column] = row
            columns[row], column = column, columns[row]
            if row == new:
                break
    # another choice is as good if rows can pass on their columns in a circle at no cost
    left = size
    alive = np.ones(size, dtype=np.bool_)
    changed = True
    while changed and left:
        changed = False
        for i in range(size):
            if not alive[i]:
                continue
            free = True
            for j in range(size):
                other = row_of[j]
                if other != i and alive[other] and cost[i, j] - u[i] - v[j] < _TIE:
                    free = False
                    break
            if free:
                alive[i] = False
                left -= 1
                changed = True
    return left > 0
