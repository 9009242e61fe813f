"""CrystalNN fingerprints of all atoms of a crystal, many times as fast as matminer's.

They are the numbers of matminer's `CrystalNNFingerprint` (preset `ops`), whose order parameters
and their parameters are read from matminer itself. The neighbors of an atom, their weights and the
probable coordination numbers are those of pymatgen's `CrystalNN` with its defaults
(Pan et al., Inorg. Chem. 60, 1590 (2021)). This module is imported only where Numba can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from scipy.spatial import ConvexHull, QhullError

from src.metrics.generation import site_kernel as kernel

if TYPE_CHECKING:
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
    from pymatgen.core import Element, Structure

_CUTOFF = 7.0  # Å, of the first search for neighbors
_FIRST = 60  # neighbors that are tried before all within the cutoff
_X_WEIGHT = 3.0  # of the difference of electronegativities
_MAX_X_DIFFERENCE = 3.3
_FADING = (0.5, 1.0)  # Å beyond the sum of the radii: neighbors count in full, and no longer

_FAMILIES = {
    "bent": kernel.BENT,
    "tri_plan_max": kernel.PLANE,
    "tet_max": kernel.PLANE,
    "T": kernel.PYRAMID,
    "tri_pyr": kernel.PYRAMID,
    "sq_pyr": kernel.PYRAMID,
    "pent_pyr": kernel.PYRAMID,
    "hex_pyr": kernel.PYRAMID,
    "tri_bipyr": kernel.BIPYRAMID,
    "pent_bipyr": kernel.BIPYRAMID,
    "hex_bipyr": kernel.BIPYRAMID,
    "oct_max": kernel.BIPYRAMID,
    "sq_plan_max": kernel.BIPYRAMID,
    "see_saw_rect": kernel.SEE_SAW,
    "hex_plan_max": kernel.HEXAGON,
    "pent_plan_max": kernel.PENTAGON,
    "cuboct_max": kernel.CUBOCTAHEDRON,
    "bcc": kernel.BCC,
}
_COLUMNS = {
    "TA": kernel.TARGET,
    "IGW_TA": kernel.TARGET_WIDTH,
    "IGW_EP": kernel.EQUATOR_WIDTH,
    "min_SPP": kernel.POLE,
    "IGW_SPP": kernel.POLE_WIDTH,
    "w_SPP": kernel.POLE_WEIGHT,
    "fac_AA": kernel.MULTIPLE,
    2: kernel.BELT_END,
    4: kernel.BELT_START,
    5: kernel.BELT_WIDTH,
    6: kernel.CAP_WIDTH,
}
_DEGREES = {"q2": 2, "q4": 4, "q6": 6}


@dataclass(frozen=True, slots=True)
class _Feature:
    """One number of a fingerprint.

    Attributes:
        count: the coordination number that it is of.
        name: of the order parameter; `wt` for the probability of the coordination number alone.
        given: (11,) its parameters.
    """

    count: int
    name: str
    given: np.ndarray


class SiteFingerprints:
    """Computes what a `CrystalNNFingerprint` does.

    Args:
        featurizer: of the preset `ops`.

    Raises:
        ValueError: if it has other order parameters or settings than this module knows.
    """

    def __init__(self, featurizer: CrystalNNFingerprint) -> None:
        _check_settings(vars(featurizer.cnn))
        self.features = [
            _feature(count, name, order_parameter)
            for count in range(1, max(featurizer.op_types) + 1)
            for name, order_parameter in zip(
                featurizer.op_types[count], featurizer.ops[count], strict=True
            )
        ]
        self.max_count = max(f.count for f in self.features if f.name not in ("wt", "sgl_bd"))

    def __call__(self, structure: Structure) -> np.ndarray:
        """The fingerprint of each atom of an ordered crystal without oxidation states.

        Returns:
            (n, 61) dimensionless.

        Raises:
            RuntimeError: if the Voronoi cell of an atom is not closed.
        """
        elements: list[Any] = [site.specie for site in structure]
        electronegativities = np.array([element.X for element in elements])  # NaN: none
        radii = np.array([_radius(element) for element in elements])
        found = []
        for i in range(len(structure)):
            others, vectors, angles, areas = _voronoi_cell(structure, i)
            weights = np.divide(angles * angles, areas, out=np.zeros_like(areas), where=areas > 0)
            difference = np.abs(electronegativities[others] - electronegativities[i])
            chemical = 1 + _X_WEIGHT * np.sqrt(difference / _MAX_X_DIFFERENCE)
            weights *= np.where(np.isnan(chemical), 1.0, chemical)
            distances = np.linalg.norm(vectors, axis=1)
            weights = weights / weights.max() * _fading(distances - radii[i] - radii[others])
            found.append(self._of_site(vectors / distances[:, None], weights))
        return np.array(found)

    def _of_site(self, units: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The (61,) fingerprint of a site with neighbors in these directions, of these weights."""
        order = np.argsort(-weights, kind="stable")
        weights = np.round(weights[order], 3)
        order, weights = order[weights > 0], weights[weights > 0]
        shares = _probabilities(weights)
        polar, azimuths, on_axis = kernel.angles_between(units[order[: self.max_count]])
        values = np.zeros(len(self.features))
        for n, feature in enumerate(self.features):
            count, share = feature.count, shares.get(feature.count, 0.0)
            if share == 0:
                continue
            if feature.name in ("wt", "sgl_bd"):  # a single neighbor is a single bond
                values[n] = share
            elif feature.name in _DEGREES:
                degree = _DEGREES[feature.name]
                values[n] = share * kernel.bond_order(polar, count, degree)
            else:
                values[n] = share * kernel.order_parameter(
                    _FAMILIES[feature.name], feature.given, polar, azimuths, on_axis, count
                )
        return values


def _check_settings(settings: dict[str, Any]) -> None:
    expected = {
        "cation_anion": False,
        "distance_cutoffs": _FADING,
        "x_diff_weight": _X_WEIGHT,
        "search_cutoff": _CUTOFF,
        "porous_adjustment": True,
        "fingerprint_length": None,
    }
    if differing := [name for name, value in expected.items() if settings.get(name) != value]:
        raise ValueError(f"CrystalNN has other settings: {', '.join(differing)}")


def _feature(count: int, name: str, order_parameter: Any) -> _Feature:
    """Read an order parameter of matminer; `wt` is a string there."""
    given = np.zeros(kernel.NUM_PARAMETERS)
    if name == "wt":
        return _Feature(count, name, given)
    (kind,), (parameters,) = order_parameter._types, order_parameter._params
    if kind in _DEGREES or (kind == "sgl_bd" and count == 1):
        return _Feature(count, kind, given)
    if (
        kind not in _FAMILIES
        or parameters.get("exp_cos_AA", 2) != 2
        or (kind == "bent") != (count == 2)
    ):
        raise ValueError(f"the order parameter {name} of matminer is not known")
    for key, value in parameters.items():
        if key != "exp_cos_AA":
            given[_COLUMNS[key]] = value
    return _Feature(count, kind, given)


def _radius(element: Element) -> float:
    """CrystalNN's radius in Å of an element without oxidation state."""
    radius = CovalentRadius.radius.get(element.symbol) or element.atomic_radius
    if radius is None:
        raise ValueError(f"there is no radius for {element.symbol}")
    return float(radius)


def _fading(beyond: np.ndarray) -> np.ndarray:
    """The factor of neighbors that are so far beyond the sum of the radii, in Å."""
    start, end = _FADING
    part = np.clip((beyond - start) / (end - start), 0.0, 1.0)
    return 0.5 * (np.cos(math.pi * part) + 1)


def _probabilities(weights: np.ndarray) -> dict[int, float]:
    """The probability of each coordination number.

    It is the area under a quarter of the unit circle between a weight and the next.

    Args:
        weights: (n,) of the neighbors, 1 to 0, in descending order.
    """
    bins = np.append(np.unique(weights)[::-1], 0.0)
    area = (bins * np.sqrt(1 - bins * bins) + np.arcsin(bins)) / (0.5 * math.pi)
    counts = np.searchsorted(-weights, -bins[:-1], side="right")
    return dict(zip(counts.tolist(), (area[:-1] - area[1:]).tolist(), strict=True))


def _voronoi_cell(
    structure: Structure, i: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The neighbors of an atom, by the facets of its Voronoi cell.

    As in pymatgen, atoms beyond 7 Å are looked at only if the cell is not closed without them.

    Returns:
        For each of K atoms: its index, the vector to it in Å, (K, 3), and the solid angle and the
        area of its facet, which are 0 where there is none.

    Raises:
        RuntimeError: if the cell is not closed.
    """
    lattice = structure.lattice
    center = structure[i].coords
    corners = lattice.get_cartesian_coords([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    longest = float(np.linalg.norm(corners, axis=1).max()) + 0.01
    cutoff = _CUTOFF
    while True:
        near: Any = lattice.get_points_in_sphere(
            structure.frac_coords, center, cutoff, zip_results=False
        )
        points, distances, indices, _ = near
        order = np.argsort(distances, kind="stable")[1:]  # the first is the atom itself
        indices = np.asarray(indices)[order]
        vectors = lattice.get_cartesian_coords(np.asarray(points)[order]) - center
        for count in sorted({min(_FIRST, len(vectors)), len(vectors)}):
            cell = _cell_of(vectors[:count])
            if cell is not None:
                angles, areas, reach = cell
                # an atom farther than twice the farthest vertex cannot cut off any of it
                if count == len(vectors) or np.linalg.norm(vectors[count]) >= 2 * reach:
                    return indices[:count], vectors[:count], angles, areas
        if cutoff >= longest:
            raise RuntimeError("the Voronoi cell of an atom is not closed")
        cutoff = min(2 * cutoff, longest + 0.001)


def _cell_of(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Solid angles and areas of the facets of a Voronoi cell, and how far its vertices reach.

    The vertices of the cell are the facets of the convex hull of the neighbors, inverted in the
    unit sphere.

    Args:
        vectors: (K, 3) from the atom to its neighbors, Å.

    Returns:
        None if the cell is not closed.
    """
    squared = np.einsum("kc,kc->k", vectors, vectors)
    try:
        hull = ConvexHull(vectors / squared[:, None])
    except (QhullError, ValueError):  # too few points, or all in a plane
        return None
    offsets = hull.equations[:, 3]
    if not (offsets < 0).all():
        return None
    vertices = hull.equations[:, :3] / (-2 * offsets[:, None])
    angles, areas = kernel.facets(vectors, vertices, hull.simplices, hull.neighbors)
    return angles, areas, float(np.linalg.norm(vertices, axis=1).max())
