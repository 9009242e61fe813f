"""Write the HTML report of an evaluation, a single file that works offline."""

import html
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from src.report.figures import (
    MATCHERS,
    NOISE_MATCHERS,
    by_num_atoms_figure,
    latents_figure,
    noise_figure,
    settings_text,
    training_curves,
    training_figure,
)
from src.report.files import EvaluationFiles
from src.report.frame import fill_frame, read_asset
from src.report.maps import PlaneMap, plane_maps
from src.report.pictures import draw_pairs, formula, is_drawable, radii, whole_cell
from src.utils.output import new_file

log = logging.getLogger(__name__)

NUM_WORST = 6  # number of pairs in worst.png
MATCHER_NAMES = ("CDVAE's tolerances", "pymatgen's defaults")


def write_report(folder: str | Path, max_crystals: int = 3000, seed: int = 0) -> None:
    """Write `report.html` and `figures/*.png` from the other files in an evaluation folder.

    Metrics that are missing in `metrics.json`, and maps and curves whose files are missing, are
    left out. `report.html` contains everything it needs, including plotly (5 MB).

    Args:
        folder: the output folder of `eval_vae`; see `EvaluationFiles`.
        max_crystals: largest number of crystals shown on the page. If there are more, half of those
            shown are the worst and half are drawn at random.
        seed: seed for this draw and for UMAP.

    Raises:
        DataError: if a required file is missing, a file cannot be read, or the files are not from
            the same evaluation; the message names the file.
    """
    folder = Path(folder).expanduser()
    evaluation = EvaluationFiles.read(folder)
    maps = [] if evaluation.pooled is None else plane_maps(evaluation.pooled, seed)
    for name, figure in _figures(evaluation, maps):
        with new_file(folder / "figures" / f"{name}.png", overwrite=True) as path:
            figure.savefig(path, dpi=150)
    shown = choose_crystals(len(evaluation.crystals), max_crystals, seed)
    with new_file(folder / "report.html", overwrite=True) as path:
        path.write_text(_page(evaluation, maps, shown), encoding="utf-8")
    log.info("The report shows %d of %d crystals", len(shown), len(evaluation.crystals))


def choose_crystals(total: int, limit: int, seed: int) -> np.ndarray:
    """Choose at most `limit` of `total` crystals, which are sorted worst first.

    If there are more, half of the chosen crystals are the worst and the rest are drawn at random.

    Returns:
        Ascending indices.
    """
    if total <= limit:
        return np.arange(total)
    worst = limit // 2
    others = np.random.default_rng(seed).choice(total - worst, limit - worst, replace=False)
    return np.concatenate([np.arange(worst), np.sort(others) + worst])


def _figures(evaluation: EvaluationFiles, maps: list[PlaneMap]) -> Iterator[tuple[str, Figure]]:
    metrics, crystals = evaluation.metrics, evaluation.crystals
    if metrics.get("by_num_atoms"):
        yield "match_by_num_atoms", by_num_atoms_figure(metrics["by_num_atoms"])
    if metrics.get("noise"):
        yield "noise", noise_figure(metrics["noise"])
    if maps:
        yield "latents", latents_figure(maps, crystals)
    if training := training_figure(evaluation.training):
        yield "training", training
    worst = evaluation.originals[:NUM_WORST]
    labels = []
    for atoms, row in zip(worst, crystals.head(NUM_WORST).to_dict("records"), strict=True):
        name = row["id"].replace("$", r"\$")  # matplotlib would parse it as math
        result = f"rms {row['rms']:.3f}" if row["matched"] else "no match"
        labels.append(f"{formula(atoms)}\n{name}\n{result}")
    yield "worst", draw_pairs(worst, evaluation.reconstructions[:NUM_WORST], labels)


def _page(evaluation: EvaluationFiles, maps: list[PlaneMap], shown: np.ndarray) -> str:
    metrics, crystals = evaluation.metrics, evaluation.crystals.iloc[shown]
    pairs = [(evaluation.originals[i], evaluation.reconstructions[i]) for i in shown]
    data = {
        "metrics": rounded(metrics),
        "matchers": [
            {"name": name, "suffix": suffix, "settings": settings_text(settings), "color": color}
            for name, (suffix, settings, color) in zip(MATCHER_NAMES, MATCHERS, strict=True)
        ],
        "noise_matchers": [
            {"suffix": suffix, "settings": settings_text(settings), "color": color}
            for suffix, settings, color in NOISE_MATCHERS
        ],
        "total": len(evaluation.crystals),
        "crystals": {name: rounded(column.tolist()) for name, column in crystals.items()},
        "pairs": [[to_drawing(old), to_drawing(new, like=old)] for old, new in pairs],
        "elements": element_styles([atoms for pair in pairs for atoms in pair]),
        "maps": [
            {"name": m.name, "points": rounded(m.points[shown].T.tolist()), "axes": m.axes}
            for m in maps
        ],
        "training": {
            name: rounded([steps.tolist(), values.tolist()])
            for name, (steps, values) in training_curves(evaluation.training).items()
        },
    }
    split = metrics.get("split")
    title = f"Reconstruction of {len(evaluation.crystals):,} crystals"
    if split:
        title += f" ({html.escape(str(split))})"
    libraries = f"{get_plotlyjs()}\n{read_asset('charts.js')}"
    return fill_frame("page", title, data, libraries)


def to_drawing(atoms: Atoms, like: Atoms | None = None) -> dict[str, Any] | None:
    """The input of `crystals.js`, in Å to three decimals; None if the crystal cannot be drawn."""
    if not is_drawable(atoms):
        return None
    index, positions, cell = whole_cell(atoms, like)
    return {
        "numbers": atoms.numbers[index].tolist(),
        "positions": positions.round(3).tolist(),
        "cell": cell.round(3).tolist(),
    }


def element_styles(crystals: list[Atoms]) -> dict[str, dict[str, Any]]:
    """Symbol, color and radius of each element in the crystals, by atomic number."""
    numbers = sorted({int(number) for atoms in crystals for number in atoms.numbers})
    return {
        str(number): {
            "symbol": chemical_symbols[number],
            "color": [round(255 * float(part)) for part in jmol_colors[number]],
            "radius": round(float(radii(np.array([number]))[0]), 3),
        }
        for number in numbers
    }


def rounded(value: Any) -> Any:
    """Round floats to five significant digits, and replace non-finite ones by None."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value
