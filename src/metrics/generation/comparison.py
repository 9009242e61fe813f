"""Put figures of several evaluations side by side, and find out which of them can be compared.

Figures are those of any `metrics.json` of `eval_generated`, `eval_csp` or `eval_stability`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.metrics.generation.intervals import interval_name

# settings that are no text; all text is a setting
_SETTINGS = {
    "k",
    "tolerances",
    "cutoffs",
    "num_generated",
    "num_reference",
    "num_references",
    "num_test_reference",
    "floor_size",
    "latent_sample_size",
    "latent_permutations",
    "relaxation",
    "symmetrize",
    "noise",
    "hull",
    "shard",
}
_NOT_COMPARED = {"input", "matcher", "k"}  # matchers agree, and names of figures contain k

_TEST = ("test_reference", "num_test_reference")
_KNOWN = ("reference", "num_reference")
# what a figure depends on besides the crystals, by its name; the first that fits
_DEPENDS: Sequence[tuple[str, tuple[str, ...]]] = (
    (r"floor\.", (*_KNOWN, *_TEST, "floor_size")),
    (r"valid_composition_smact_reference$", (*_TEST, "smact_version")),
    (r"valid_composition_smact$", ("smact_version",)),
    (r".*_reference$", _TEST),
    (r"valid_unique_and_novel$|unique_and_novel$", ("tolerances", "num_generated", *_KNOWN)),
    (r"valid|too_close$|isolated$|closest_quantiles", ()),
    (r".*_outside$|wdist_|tvd_", _TEST),
    (r"latent_.*_held_out$", ("encoder", "latent_sample_size", *_KNOWN, *_TEST)),
    (r"latent_", ("encoder", "latent_sample_size", *_KNOWN)),
    (r"amd_recall", (*_TEST, "num_generated")),
    (r"amd_", _TEST),
    (r"unique", ("tolerances", "num_generated")),
    (r"novel", ("tolerances", *_KNOWN)),
    (r"cov_", ("cutoffs", "scale_reference", "num_generated", *_TEST)),
    (
        r"match_at_|rmse_at_|crmse_at_|metre",
        ("tolerances", "polymorphs", "reference", "num_references"),
    ),
)

_SHARE = re.compile(
    r"valid|unique|novel|too_close|isolated|.*_outside$|cov_|match_at_|metre$|stable_|metastable_"
    r"|m?sun_|converged_|still_matches_|unknown_hull_|implausible_"
)
_HIGHER = re.compile(
    r"valid|unique|novel|cov_|match_at_|metre$|stable_|metastable_|m?sun_|converged_|still_matches_"
)
_LOWER = re.compile(
    r"too_close$|isolated$|.*_outside$|wdist_|tvd_|amd_precision|amd_recall|rmse_at_|crmse_at_"
    r"|metre_crmse|num_failed_|largest_force_|largest_stress_|energy_gained_|rmsd_|rms_"
    r"|volume_change_|unknown_hull_|implausible_|energy_above_hull_|latent_energy_distance"
)
_NO_DIRECTION = re.compile(r"floor\.|.*_reference$|.*_held_out$")
_COUNT = re.compile(r"num_|match_timeouts$|.*failures$")


@dataclass(frozen=True, slots=True)
class Run:
    """The content of one `metrics.json`.

    Attributes:
        name: to show.
        figures: by name; those of nested objects as `largest_force.0.5`.
        intervals: of the figures that have one.
        settings: what figures depend on.
    """

    name: str
    figures: dict[str, float]
    intervals: dict[str, list[float]]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of all runs.

    Attributes:
        figure: its name.
        values: of each run; None if it has none.
        intervals: of each run; None without one.
        is_share: whether it is a fraction of crystals.
        best: indices of the runs with the best value; empty if there is no better or worse, or if
            the runs cannot be compared.
        differing: names of the settings that the figure depends on and that are not the same in
            all runs that have the figure.
    """

    figure: str
    values: list[float | None]
    intervals: list[list[float] | None]
    is_share: bool
    best: list[int]
    differing: list[str]


def read_run(name: str, metrics: Mapping[str, Any]) -> Run:
    """Tell figures, intervals and settings of a `metrics.json` apart.

    Lists of objects, such as figures by number of atoms, are left out.
    """
    figures: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    settings: dict[str, Any] = {}
    for key, value in metrics.items():
        base = key.removesuffix(interval_name(""))
        if base != key and base in metrics:
            if value is not None:
                intervals[base] = value
        elif key in _SETTINGS or isinstance(value, (str, bool)):
            settings[key] = value
        elif isinstance(value, Mapping):
            _add_nested(figures, key, value)
        elif isinstance(value, (int, float)):
            figures[key] = value
    return Run(name, figures, intervals, settings)


def compare(runs: Sequence[Run]) -> list[Row]:
    """A row for each figure that one of the runs has; counts come last."""
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    names.sort(key=lambda name: bool(_COUNT.match(name)))  # keeps the order otherwise
    return [_row(name, runs) for name in names]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs that have them, with their values."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    return {
        name: [run.settings.get(name) for run in runs]
        for name in names
        if name not in _NOT_COMPARED and _differs(name, runs)
    }


def _row(name: str, runs: Sequence[Run]) -> Row:
    having = [run for run in runs if name in run.figures]
    differing = [setting for setting in _settings_of(name, having) if _differs(setting, having)]
    values = [run.figures.get(name) for run in runs]
    return Row(
        figure=name,
        values=values,
        intervals=[run.intervals.get(name) for run in runs],
        is_share=bool(_SHARE.match(name)) and not _COUNT.match(name),
        best=[] if differing else _best(name, values),
        differing=differing,
    )


def _settings_of(name: str, runs: Sequence[Run]) -> list[str]:
    """What a figure depends on; an unknown figure depends on everything."""
    if _COUNT.match(name) and not _LOWER.match(name):
        return []
    for pattern, settings in _DEPENDS:
        if re.match(pattern, name):
            return list(settings)
    everything = dict.fromkeys(setting for run in runs for setting in run.settings)
    return [setting for setting in everything if setting not in _NOT_COMPARED]


def _differs(setting: str, runs: Sequence[Run]) -> bool:
    found = [run.settings[setting] for run in runs if setting in run.settings]
    return any(value != found[0] for value in found)


def _best(name: str, values: Sequence[float | None]) -> list[int]:
    known = [value for value in values if value is not None]
    if len(known) < 2 or _NO_DIRECTION.match(name):
        return []
    if _LOWER.match(name):
        best = min(known)
    elif _HIGHER.match(name):
        best = max(known)
    else:
        return []
    return [i for i, value in enumerate(values) if value == best]


def _add_nested(figures: dict[str, float], name: str, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, Mapping):
            _add_nested(figures, f"{name}.{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            figures[f"{name}.{key}"] = value
