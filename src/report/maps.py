"""Project latents onto a plane."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PlaneMap:
    """A projection with one point for each crystal.

    Attributes:
        name: name of the method.
        points: (B, 2).
        axes: labels of the two axes.
    """

    name: str
    points: np.ndarray
    axes: tuple[str, str]


def plane_maps(x: np.ndarray, seed: int = 0) -> list[PlaneMap]:
    """Project (B, d) points by PCA and, if umap-learn is installed, by UMAP.

    Returns no maps if the points are not finite (those of a model that diverged).
    """
    if not np.isfinite(x).all():
        return []
    maps = [principal_components(x)]
    try:
        from umap import UMAP
    except ImportError:
        return maps
    if len(x) > 3:  # UMAP needs neighbors
        # a fixed seed requires n_jobs=1
        points = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)
        maps.append(PlaneMap("UMAP", points, ("UMAP 1", "UMAP 2")))
    return maps


def principal_components(x: np.ndarray) -> PlaneMap:
    """Project (B, d) points onto their first two principal components.

    The sign of a component is chosen so that its largest coefficient is positive. The axis labels
    give the fraction of the variance. Points with fewer than two dimensions are padded with zeros.
    """
    centered = x - x.mean(axis=0)
    _, singular, components = np.linalg.svd(centered, full_matrices=False)
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    variance = singular**2 / max(float((singular**2).sum()), 1e-30)
    points = np.zeros((len(x), 2))
    points[:, : len(components[:2])] = centered @ components[:2].T
    first, second, *_ = [*variance, 0.0, 0.0]
    axes = (f"PC 1 ({first:.0%} of variance)", f"PC 2 ({second:.0%})")
    return PlaneMap("PCA", points, axes)
