"""The innermost loops of `site_fingerprints`, compiled by Numba."""

import math

import numpy as np
from numba import njit

(BENT, PLANE, PYRAMID, BIPYRAMID, SEE_SAW, HEXAGON, PENTAGON, CUBOCTAHEDRON, BCC) = range(9)
"""Families of order parameters, by how they rate angles."""

(TARGET, TARGET_WIDTH, EQUATOR_WIDTH, POLE, POLE_WIDTH, POLE_WEIGHT, MULTIPLE) = range(7)
BELT_END, BELT_START, BELT_WIDTH, CAP_WIDTH = range(7, 11)
"""Columns of the parameters of an order parameter."""
NUM_PARAMETERS = 11

_NEGLIGIBLE = 1e-12
_CAP_WIDTH = 0.0556  # of the azimuth of a cuboctahedron's caps, as pymatgen has it
_CAP_TARGET = math.sqrt(2 / 3)
_BCC_ANGLE = math.asin(1 / 3)


@njit(cache=True)
def facets(vectors, vertices, simplices, adjacent):
    """The solid angle and the area of the facets of a Voronoi cell around the origin.

    A facet is divided into triangles from the point halfway to the neighbor. Those that lie outside
    the facet, if that point does, count negative.

    Args:
        vectors: (K, 3) from the atom to its neighbors, Å.
        vertices: (F, 3) of the cell, Å.
        simplices: (F, 3) the neighbors whose facets meet at each vertex.
        adjacent: (F, 3) the vertex that shares all of these but the one in the same place.

    Returns:
        (K,) solid angles and (K,) areas in Å^2; 0 for those without a facet.
    """
    angles, areas = np.zeros(len(vectors)), np.zeros(len(vectors))
    for a in range(len(simplices)):
        for place in range(3):
            b = adjacent[a, place]
            if b < a:
                continue  # each edge once
            one, other = simplices[a, (place + 1) % 3], simplices[a, (place + 2) % 3]
            for own, beyond in ((one, other), (other, one)):
                axis = vectors[own]
                squared = axis @ axis
                middle = 0.5 * axis
                outwards = vectors[beyond] - (vectors[beyond] @ axis) / squared * axis
                first, second = vertices[a], vertices[b]
                product = np.cross(first - middle, second - middle)
                area = 0.5 * math.sqrt(product @ product)
                sign = 1.0 if (first - middle) @ outwards >= 0 else -1.0
                areas[own] += sign * area
                angles[own] += sign * _solid_angle(middle, first, second)
    return angles, areas


@njit(cache=True)
def _solid_angle(a, b, c):
    """Of a triangle seen from the origin (Van Oosterom and Strackee, 1983)."""
    x, y, z = math.sqrt(a @ a), math.sqrt(b @ b), math.sqrt(c @ c)
    triple = abs(a @ np.cross(b, c))
    return 2 * math.atan2(triple, x * y * z + (a @ b) * z + (a @ c) * y + (b @ c) * x)


@njit(cache=True)
def angles_between(units):
    """Angles at the central atom.

    Args:
        units: (n, 3) unit vectors to the neighbors.

    Returns:
        (n, n) the angle of two neighbors, divided by π; (n, n, n) the azimuth in radians between
        the second and the third around the first, NaN where one of them is on its axis; and (n, n)
        whether the second is.
    """
    count = len(units)
    polar = np.zeros((count, count))
    azimuths = np.full((count, count, count), np.nan)
    on_axis = np.zeros((count, count), dtype=np.bool_)
    across = np.empty((count, 3))
    for j in range(count):
        for k in range(count):
            cosine = max(-1.0, min(units[j] @ units[k], 1.0))
            polar[j, k] = math.acos(cosine) / math.pi
            part = units[k] - (units[j] @ units[k]) * units[j]
            norm = math.sqrt(part @ part)
            on_axis[j, k] = norm < _NEGLIGIBLE
            across[k] = part / norm if norm > 0 else part
        for k in range(count):
            for m in range(k):
                if not on_axis[j, k] and not on_axis[j, m] and j not in (k, m):
                    azimuth = math.acos(max(-1.0, min(across[k] @ across[m], 1.0)))
                    azimuths[j, k, m] = azimuths[j, m, k] = azimuth
    return polar, azimuths, on_axis


@njit(cache=True)
def bond_order(polar, count, degree):
    """The bond-orientational order parameter of the first neighbors (Steinhardt et al., 1983).

    By the addition theorem of spherical harmonics, it is the root of the mean Legendre polynomial
    over all pairs of neighbors.

    Args:
        polar: see `angles_between`.
        count: of neighbors.
        degree: 2, 4 or 6.
    """
    total = 0.0
    for j in range(count):
        for k in range(count):
            x = math.cos(math.pi * polar[j, k]) if j != k else 1.0
            before, here = 1.0, x
            for n in range(1, degree):
                before, here = here, ((2 * n + 1) * x * here - n * before) / (n + 1)
            total += here
    return math.sqrt(max(total, 0.0)) / count


@njit(cache=True)
def order_parameter(family, given, polar, azimuths, on_axis, count):
    """How well the first neighbors fit a motif.

    Each neighbor in turn is the pole and each other one fixes the zero of the azimuth; the motif
    says which angles the rest should have (Zimmermann and Jain, RSC Adv. 10, 6063 (2020)).

    Args:
        family: one of the families above.
        given: (11,) parameters, see the columns above.
        polar, azimuths, on_axis: see `angles_between`.
        count: of neighbors.
    """
    if family == BENT:
        return _gauss(given[TARGET_WIDTH] * (polar[0, 1] - given[TARGET]))
    total, best = 0.0, 0.0
    for j in range(count):
        for k in range(count):
            if j == k or (family == BCC and k < j):
                continue
            fit, weight = _fit_of_second(family, given, polar[j, k])
            if not on_axis[j, k]:
                for m in range(count):
                    if m in (j, k):
                        continue
                    more, counted = _fit_of_third(
                        family, given, polar[j, k], polar[j, m], azimuths[j, k, m]
                    )
                    fit += more
                    weight += counted
            total += fit
            if weight > _NEGLIGIBLE:
                best = max(best, fit / weight)
    if family == BCC:
        return total / (0.5 * count * (6 + (count - 2) * (count - 3))) if count > 3 else 0.0
    return best


@njit(cache=True)
def _gauss(x):
    return math.exp(-0.5 * x * x)


@njit(cache=True)
def _fit_of_second(family, given, polar):
    """What a second neighbor adds to the fit and to the norm, at its angle to the first over π."""
    is_at_pole = polar * math.pi >= given[POLE]
    if family == PLANE:
        return _gauss(given[TARGET_WIDTH] * (polar - given[TARGET])), 1.0
    if family == PYRAMID:
        return _gauss(given[EQUATOR_WIDTH] * (polar - 0.5)), 1.0
    if family in (BIPYRAMID, SEE_SAW):
        return (0.0, 0.0) if is_at_pole else (_gauss(given[EQUATOR_WIDTH] * (polar - 0.5)), 1.0)
    if family == HEXAGON:
        return (0.0, 0.0) if is_at_pole else (_off_equator(given, polar), 1.0)
    if family == PENTAGON:
        return _pentagon(given, polar), 1.0
    weight = given[POLE_WEIGHT]  # CUBOCTAHEDRON, BCC
    if is_at_pole:
        return weight * _gauss(given[POLE_WIDTH] * (polar - 1)), weight
    return 0.0, 0.0


@njit(cache=True)
def _fit_of_third(family, given, second, polar, azimuth):
    """What a third neighbor adds, at angles `second` and `polar` over π, and with this azimuth."""
    is_at_pole = polar * math.pi >= given[POLE]
    is_second_at_pole = second * math.pi >= given[POLE]
    if is_at_pole and family in (BIPYRAMID, SEE_SAW, HEXAGON):
        return _gauss(given[POLE_WIDTH] * (polar - 1)), 1.0
    if math.isnan(azimuth):
        return 0.0, 0.0
    around = math.cos(given[MULTIPLE] * azimuth) ** 2
    if family == PLANE:
        return around * _gauss(given[TARGET_WIDTH] * (polar - given[TARGET])), 1.0
    if family == PYRAMID:
        return around * _gauss(given[EQUATOR_WIDTH] * (polar - 0.5)), 1.0
    if family == PENTAGON:
        return math.cos(azimuth) ** 2 * _pentagon(given, polar), 1.0
    if is_second_at_pole:
        return 0.0, 0.0
    if family == BCC:
        side = 1.0 if second > 0.5 else -1.0
        x = (polar - 0.5) * math.pi / _BCC_ANGLE
        return side * math.cos(3 * azimuth) * x * _gauss(x) / _gauss(1.0), 1.0
    if family == CUBOCTAHEDRON:
        return _cuboctahedron(given, second, polar, azimuth, is_at_pole)
    if family == SEE_SAW and azimuth >= 0.75 * math.pi:
        return 0.0, 0.0
    if family == HEXAGON:
        return around * _off_equator(given, polar), 1.0
    return around * _gauss(given[EQUATOR_WIDTH] * (polar - 0.5)), 1.0


@njit(cache=True)
def _off_equator(given, polar):
    return _gauss(given[TARGET_WIDTH] * (abs(polar - 0.5) - given[TARGET]))


@njit(cache=True)
def _pentagon(given, polar):
    """Neighbors at 72° or 144°."""
    target = 0.4 if polar <= given[TARGET] else 0.8
    return _gauss(given[TARGET_WIDTH] * (polar - target))


@njit(cache=True)
def _cuboctahedron(given, second, polar, azimuth, is_at_pole):
    """Four neighbors at 90° (the belt), and four each at 60° and 120° (the caps)."""
    start, end = given[BELT_START] / math.pi, given[BELT_END] / math.pi
    if is_at_pole or not start < second < end:
        return 0.0, 0.0
    if start < polar < end:
        return math.cos(azimuth) ** 2 * _gauss(given[BELT_WIDTH] * (polar - 0.5)), 1.0
    if polar in (start, end):
        return 0.0, 0.0
    cap = 1 / 3 if polar < start else 2 / 3
    around = _gauss(_CAP_WIDTH * (math.sin(azimuth) - _CAP_TARGET))
    return around * _gauss(given[CAP_WIDTH] * (polar - cap)), 1.0
