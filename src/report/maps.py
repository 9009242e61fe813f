"""Maps of a latent space onto a plane."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PlaneMap:
    """Points on a plane, one for each crystal.

    Attributes:
        name: of the method.
        points: (B, 2).
        axes: what the two axes are.
    """

    name: str
    points: np.ndarray
    axes: tuple[str, str]


def plane_maps(x: np.ndarray, seed: int = 0) -> list[PlaneMap]:
    """Principal components of (B, d) points and, where umap-learn is installed, their UMAP.

    None of a model that diverged, whose latents are not finite.
    """
    if not np.isfinite(x).all():
        return []
    maps = [principal_components(x)]
    try:
        from umap import UMAP
    except ImportError:
        return maps
    if len(x) > 3:  # UMAP needs neighbours
        # n_jobs as the seed demands it
        points = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(x)
        maps.append(PlaneMap("UMAP", points, ("UMAP 1", "UMAP 2")))
    return maps


def principal_components(x: np.ndarray) -> PlaneMap:
    """Projection of (B, d) points onto their first two principal components.

    The sign of each is such that its largest coefficient is positive. The axes say what share of
    the variance is along them. What has fewer than two dimensions is filled up with zeros.
    """
    centred = x - x.mean(axis=0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    variance = singular**2 / max(float((singular**2).sum()), 1e-30)
    points = np.zeros((len(x), 2))
    points[:, : len(components[:2])] = centred @ components[:2].T
    shares = [*variance, 0.0, 0.0]
    axes = (f"PC 1 ({shares[0]:.0%} of variance)", f"PC 2 ({shares[1]:.0%})")
    return PlaneMap("PCA", points, axes)
