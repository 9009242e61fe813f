"""Draw the charts of a report with matplotlib, for papers and slides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.metrics.matching import CDVAE, PYMATGEN, UNREDUCED, MatcherSettings
from src.report.maps import PlaneMap

# suffix of the keys in metrics.json, matcher settings, color
MATCHERS = (("", CDVAE, "#3577c1"), ("_default", PYMATGEN, "#e08a2c"))
NOISE_MATCHERS = (*MATCHERS, ("_unreduced", UNREDUCED, "#3f9b57"))


def settings_text(settings: MatcherSettings) -> str:
    """Describe matcher settings, such as `stol 0.5, ltol 0.3, angle 10°`."""
    text = f"stol {settings.stol:g}, ltol {settings.ltol:g}, angle {settings.angle_tol:g}°"
    return text if settings.primitive_cell else f"{text}, no primitive reduction"


def by_num_atoms_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Match rates by number of atoms, above the number of crystals."""
    num_atoms = np.array([row["num_atoms"] for row in rows])
    figure = Figure(figsize=(max(5.0, 0.3 * len(rows)), 3.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for shift, (suffix, settings, color) in zip((-0.2, 0.2), MATCHERS, strict=True):
        rates = [_percent(row.get(f"match_rate{suffix}")) for row in rows]
        top.bar(num_atoms + shift, rates, 0.4, color=color, label=settings_text(settings))
    top.set(ylabel="match rate, %", ylim=(0, 100))
    counts = bottom.bar(num_atoms, [row["crystals"] for row in rows], 0.8, color="0.6")
    bottom.bar_label(counts, fontsize=7)
    bottom.margins(y=0.25)
    bottom.set(ylabel="crystals", xlabel="atoms per cell")
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=24, integer=True))
    _finish(top, bottom)
    figure.legend(
        *top.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False
    )
    return figure


def noise_figure(noise: Mapping[str, Any]) -> Figure:
    """Match rates against noise on the latents; the legend gives the area under each curve."""
    figure = Figure(figsize=(5.0, 4.0), layout="constrained")
    ax = figure.subplots()
    for suffix, settings, color in NOISE_MATCHERS:
        if rates := noise.get(f"match_rate{suffix}"):
            percent = [_percent(rate) for rate in rates]
            area = noise.get(f"area{suffix}")
            label = settings_text(settings) + ("" if area is None else f"; area {area:.3f}")
            ax.plot(noise["levels"], percent, "o-", color=color, label=label)
    ax.set(
        xlabel="noise on the latents, in standard deviations of each channel",
        ylabel="match rate, %",
        ylim=(0, 102),
    )
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    figure.legend(loc="outside upper left", frameon=False)
    _finish(ax)
    return figure


def latents_figure(maps: Sequence[PlaneMap], crystals: pd.DataFrame) -> Figure:
    """Maps of the latents, colored by crystal system (if available) and by number of atoms."""
    width = 2 if "crystal_system" in crystals else 1
    figure = Figure(figsize=(5.0 * width, 4.2 * len(maps)), layout="constrained")
    for row, plane in zip(figure.subplots(len(maps), width, squeeze=False), maps, strict=True):
        style: dict[str, Any] = {"s": 8, "linewidths": 0, "alpha": 0.8}
        if width == 2:
            for name, group in crystals.groupby("crystal_system", sort=False).groups.items():
                row[0].scatter(*plane.points[group].T, label=name, **style)
        points = row[-1].scatter(*plane.points.T, c=crystals["num_atoms"], cmap="viridis", **style)
        figure.colorbar(points, ax=row[-1], label="atoms per cell")
        for ax in row:
            ax.set(xlabel=plane.axes[0], ylabel=plane.axes[1])
        _finish(*row)
    entries = row[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper left", ncols=8, markerscale=2, frameon=False)
    return figure


def training_figure(training: pd.DataFrame) -> Figure | None:
    """Losses and match rate against the step; None if none of them were logged."""
    curves = training_curves(training)
    losses = {name: curve for name, curve in curves.items() if name.endswith("loss")}
    rates = {name: curve for name, curve in curves.items() if name.endswith("match_rate")}
    panels = [panel for panel in (losses, rates) if panel]
    if not panels:
        return None
    figure = Figure(figsize=(5.0 * len(panels), 3.4), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (steps, values) in panel.items():
            color = "0.6" if name.startswith("train") else MATCHERS[0][2]
            ax.plot(steps, values * (1 if panel is losses else 100), color=color, label=name)
        ax.set(xlabel="step", ylabel="loss" if panel is losses else "match rate, %")
        if panel is losses and all((values > 0).all() for _, values in panel.values()):
            ax.set_yscale("log")
        ax.legend(frameon=False)
        _finish(ax)
    return figure


def training_curves(training: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and finite values of `train/loss`, `val/loss` and `val/match_rate`, if logged."""
    curves = {}
    for name in ("train/loss", "val/loss", "val/match_rate"):
        if {name, "step"} <= set(training.columns):
            steps = pd.to_numeric(training["step"], errors="coerce").to_numpy(float)
            values = pd.to_numeric(training[name], errors="coerce").to_numpy(float)
            finite = np.isfinite(steps) & np.isfinite(values)
            if finite.any():
                curves[name] = steps[finite], values[finite]
    return curves


def _percent(fraction: float | None) -> float:
    return float("nan") if fraction is None else 100 * fraction


def _finish(*axes: Axes) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
