"""Draw static pictures of crystals: shaded spheres and the edges of the cell, sorted by depth.

Colors are Jmol's and radii are covalent radii, both from `ase.data`. Crystals are rotated so that a
points right and b lies in the horizontal plane, so two crystals with the same cell are drawn alike,
whatever their orientation. `crystals.js` draws the same pictures on a web page.
"""

import re
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

RADIUS = 0.65  # of a sphere, in covalent radii, so that neighbors do not quite touch
MARGIN = 0.3  # Å; atoms this close to a face are also drawn at the opposite face
NEAR = 1.5  # Å; a reconstructed atom this close to the original is drawn next to its images
MAX_LENGTH = 200.0  # Å; longer cells are not drawn
AXIS_COLORS = ((0.85, 0.2, 0.2), (0.15, 0.6, 0.2), (0.2, 0.35, 0.9))  # a, b, c
EDGE_COLOR = (0.55, 0.55, 0.55)
EDGE_PIECES = 24  # pieces of an edge, each sorted by depth
LIGHT = (-0.32, 0.36)  # position of the highlight on a sphere, in units of its radius


def view_matrix(tilt: float = 14.0, turn: float = -24.0) -> np.ndarray:
    """Rotation matrix (3, 3) to screen axes: right, up, toward the viewer.

    Args:
        tilt, turn: rotation in degrees about the horizontal and vertical axes of the screen.
    """
    (cos_x, sin_x), (cos_y, sin_y) = (
        (np.cos(angle), np.sin(angle)) for angle in np.deg2rad([tilt, turn])
    )
    about_x = np.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]])
    about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    z_up = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    return about_x @ about_y @ z_up


def is_drawable(atoms: Atoms) -> bool:
    """Whether the cell has a finite and sensible size and all positions are finite."""
    cell = atoms.cell.array
    if not len(atoms) or not np.isfinite(cell).all() or not np.isfinite(atoms.positions).all():
        return False
    return bool(atoms.cell.volume > 0.1 and atoms.cell.lengths().max() < MAX_LENGTH)


def whole_cell(
    atoms: Atoms, like: Atoms | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeat the atoms on faces, edges and corners, so that the cell looks complete.

    Args:
        like: the original of a reconstruction. The same images of each atom are shown as for the
            original, so that a small displacement across a face looks small, unless the atom moved
            by more than `NEAR`. Ignored if it cannot be drawn or has another number of atoms.

    Returns:
        index (M,) of each drawn atom in `atoms`; positions (M, 3) in Å; cell (3, 3) in Å, rotated
        so that a is along x and b is in the xy plane.
    """
    cell = atoms.cell.standard_form()[0].array
    if like is None or len(like) != len(atoms) or not is_drawable(like):
        like = atoms
    anchors = _frac_coords(like) % 1
    displacement = _frac_coords(atoms) - anchors
    displacement -= displacement.round()
    far = np.linalg.norm(displacement @ cell, axis=1) > NEAR
    anchors[far], displacement[far] = _frac_coords(atoms)[far] % 1, 0
    images = anchors + np.array(list(product((-1, 0, 1), repeat=3)))[:, None]
    # MARGIN as a fraction of the height of the cell along each axis
    margin = MARGIN * np.linalg.norm(np.linalg.inv(like.cell.array), axis=0)
    shift, index = ((images > -margin) & (images < 1 + margin)).all(-1).nonzero()
    return index, (images[shift, index] + displacement[index]) @ cell, cell


def extent(crystal: Atoms | Structure, like: Atoms | Structure | None = None) -> float:
    """Distance in Å from the cell center to the farthest drawn point; 0 if nothing is drawn."""
    atoms = _to_atoms(crystal)
    if not is_drawable(atoms):
        return 0.0
    index, positions, cell = whole_cell(atoms, None if like is None else _to_atoms(like))
    corners = np.array(list(product((0, 1), repeat=3))) @ cell
    center = cell.sum(axis=0) / 2
    reach = np.linalg.norm(positions - center, axis=1) + radii(atoms.numbers[index])
    return float(max(reach.max(), np.linalg.norm(corners - center, axis=1).max()))


def radii(numbers: np.ndarray) -> np.ndarray:
    """Radii of the drawn spheres in Å."""
    return RADIUS * covalent_radii[numbers]


def draw_crystal(
    ax: Axes,
    crystal: Atoms | Structure,
    scale: float | None = None,
    like: Atoms | Structure | None = None,
) -> None:
    """Draw one crystal on axes.

    If the crystal cannot be drawn (non-finite numbers, no volume, a cell of hundreds of Å), the
    picture shows the text "invalid structure".

    Args:
        scale: distance in Å from the center to the border of the picture; None to fit the crystal.
        like: see `whole_cell`.

    Raises:
        ValueError: for partial occupancies.
    """
    atoms = _to_atoms(crystal)
    ax.set_axis_off()
    ax.set_aspect("equal")
    if not is_drawable(atoms):
        ax.text(0.5, 0.5, "invalid structure", transform=ax.transAxes, ha="center", va="center")
        return
    index, positions, cell = whole_cell(atoms, None if like is None else _to_atoms(like))
    numbers = atoms.numbers[index]
    sizes = radii(numbers)
    view, center = view_matrix(), cell.sum(axis=0) / 2
    items = [  # depth, path, fill color, line color, line width
        item
        for number, size, xyz in zip(numbers, sizes, (positions - center) @ view.T, strict=True)
        for item in _sphere(xyz, size, jmol_colors[number])
    ]
    for start, end, color in _edges(cell):
        points = np.linspace(start, end, EDGE_PIECES + 1)
        for piece in pairwise(points):
            hidden = np.linalg.norm(np.mean(piece, axis=0) - positions, axis=1) < sizes
            if not hidden.any():
                screen = (np.array(piece) - center) @ view.T
                items.append((screen[:, 2].mean(), Path(screen[:, :2]), "none", color, 1.0))
    items.sort(key=lambda item: item[0])  # stable, so that the discs of a sphere stay in order
    _, paths, fills, lines, widths = zip(*items, strict=True)
    ax.add_collection(
        PathCollection(paths, facecolors=fills, edgecolors=lines, linewidths=widths),
        autolim=False,
    )
    half = extent(atoms, like) if scale is None else scale
    ax.set(xlim=(-half, half), ylim=(-half, half))


def draw_strip(
    crystals: Sequence[Atoms | Structure], labels: Sequence[str] | None = None
) -> Figure:
    """Draw crystals in a row, at the same scale, with a label below each (default: the formula).

    Raises:
        ValueError: if there are no crystals, or the number of labels differs.
    """
    labels = labels or [formula(crystal) for crystal in crystals]
    _check_counts(crystals, labels)
    figure = Figure(figsize=(2.1 * len(crystals), 2.4), layout="constrained")
    scale = max(extent(crystal) for crystal in crystals)
    axes = figure.subplots(1, len(crystals), squeeze=False)[0]
    for ax, crystal, label in zip(axes, crystals, labels, strict=True):
        draw_crystal(ax, crystal, scale or None)
        _write_below(ax, label)
    return figure


def draw_pairs(
    originals: Sequence[Atoms | Structure],
    reconstructions: Sequence[Atoms | Structure],
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw originals in a row, each above its reconstruction and at the same scale.

    Args:
        labels: labels below the pairs; default: the formulas of the originals.
        title: title of the figure.

    Raises:
        ValueError: if there are no crystals, or the numbers of crystals or labels differ.
    """
    labels = labels or [formula(crystal) for crystal in originals]
    _check_counts(originals, reconstructions, labels)
    figure = Figure(figsize=(2.1 * len(originals) + 0.3, 4.8), layout="constrained")
    axes = figure.subplots(2, len(originals), squeeze=False)
    for (above, below), original, reconstruction, label in zip(
        axes.T, originals, reconstructions, labels, strict=True
    ):
        scale = max(extent(original), extent(reconstruction, like=original))
        draw_crystal(above, original, scale or None)
        draw_crystal(below, reconstruction, scale or None, like=original)
        _write_below(below, label)
    for ax, name in zip(axes[:, 0], ("original", "reconstruction"), strict=True):
        ax.text(-0.06, 0.5, name, transform=ax.transAxes, ha="right", va="center", rotation=90)
    if title:
        figure.suptitle(title)
    return figure


def formula(crystal: Atoms | Structure) -> str:
    """The formula with subscripts for matplotlib, such as Sr$_{4}$I$_{8}$."""
    symbols = _to_atoms(crystal).get_chemical_formula("metal")
    return re.sub(r"(\d+)", r"$_{\1}$", symbols)


def _check_counts(*lists: Sequence) -> None:
    counts = [len(each) for each in lists]
    if not counts[0] or len(set(counts)) > 1:
        raise ValueError(f"expected lists of the same nonzero length, not of lengths {counts}")


def _write_below(ax: Axes, label: str) -> None:
    ax.text(0.5, -0.02, label, transform=ax.transAxes, ha="center", va="top", fontsize=9)


def _to_atoms(crystal: Atoms | Structure) -> Atoms:
    if isinstance(crystal, Atoms):
        return crystal
    return AseAtomsAdaptor.get_atoms(crystal, msonable=False)


def _frac_coords(atoms: Atoms) -> np.ndarray:
    return atoms.cell.scaled_positions(atoms.positions)


def _sphere(center: np.ndarray, radius: float, color: np.ndarray) -> list[tuple]:
    """Draw a sphere as discs from dark to bright that shrink toward the highlight."""
    x, y, depth = center
    discs = [(depth, Path.circle((x, y), radius), 0.62 * color, "0.2", 0.4)]
    for light in np.linspace(0.06, 1, 14):
        shade = 0.62 + 0.38 * min(1.0, 1.6 * light)
        white = 0.75 * max(0.0, light - 0.4) ** 1.5
        fill = color * shade * (1 - white) + white
        spot = (x + LIGHT[0] * radius * light, y + LIGHT[1] * radius * light)
        size = radius * (1 - light) ** 0.75
        discs.append((depth, Path.circle(spot, size), fill, "none", 0.0))
    return discs


def _edges(cell: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]:
    """The twelve edges as start, end and color; a, b and c at the origin have their own colors."""
    edges = []
    for axis in range(3):
        b, c = (cell[i] for i in range(3) if i != axis)
        for m, n in product((0, 1), repeat=2):
            start = m * b + n * c
            color = EDGE_COLOR if m or n else AXIS_COLORS[axis]
            edges.append((start, start + cell[axis], color))
    return edges
