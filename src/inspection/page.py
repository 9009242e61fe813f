"""Write the HTML page that describes a data set; it is one small file that works offline."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from ase.data import atomic_numbers
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from src.inspection.inventory import COPY_RMS, PROPERTY_PREFIX, QUANTITIES, quantity_names
from src.metrics.matching import MatcherSettings
from src.report.figures import settings_text
from src.report.files import CRYSTAL_SYSTEMS

_NUM_BINS = 40
_MAX_ROWS = 25  # in tables of single crystals; the CSV files have all of them
_MAX_GROUPS = 3  # space groups listed for each split

# Placeholders for CSS variables, whose values depend on light or dark mode
_TEXT, _FAINT = "#010203", "#020304"
_COLORS = {"train": "#030405", "val": "#040506", "test": "#050607"}
_VARIABLES = {_TEXT: "--text", _FAINT: "--line"} | {c: f"--{n}" for n, c in _COLORS.items()}


class SummaryTable(NamedTuple):
    """A table for the terminal and the page.

    Attributes:
        title, note: text above and below the table.
        header, rows: the cells.
        texts: indices of the columns that contain text, not numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    texts: Sequence[int] = (0,)


def crystal_systems(space_groups: pd.Series) -> pd.Series:
    """The crystal system of each space group number; missing for missing numbers."""
    edges = [0, *CRYSTAL_SYSTEMS.values()]
    return pd.cut(space_groups.astype(float), edges, labels=list(CRYSTAL_SYSTEMS))


# Tables


def summary_tables(summary: Mapping[str, Any], rejected: pd.DataFrame) -> list[SummaryTable]:
    """Tables of the splits, the duplicates and, if there are any, the rejected crystals."""
    found = [_splits_table(summary), _duplicates_table(summary)]
    return found if rejected.empty else [*found, _rejected_table(summary, rejected)]


def _splits_table(summary: Mapping[str, Any]) -> SummaryTable:
    splits = summary["splits"].values()
    rejected = [split["rejected"] for split in splits]
    total = sum(summary["rejected"].values())  # includes those rejected before splitting

    def row(name: str, values: Sequence[str]) -> list[str]:
        return [name, *values]

    rows = [
        row("crystals", [f"{split['crystals']:,}" for split in splits]),
        *([row("rejected", [f"{n:,}" for n in rejected])] if sum(rejected) == total else []),
        row("elements", [f"{len(split['elements'])}" for split in splits]),
        row("elements not in train", [_element_list(s["elements_not_in_train"]) for s in splits]),
    ]
    for name in next(iter(splits))["figures"]:
        figures = [split["figures"][name] for split in splits]
        rows.append(row(_label(name), list(map(_range, figures))))
        if name.startswith(PROPERTY_PREFIX):
            rows.append(row("  missing", [f"{figure['missing']:,}" for figure in figures]))
    rows.append(row("most frequent space groups", [_space_groups(split) for split in splits]))
    return SummaryTable(
        "Splits (min, mean and max of each quantity)",
        ["", *summary["splits"]],
        rows,
        f"Cells as read with data.cell={summary['read_options']['cell']}. Space groups found by "
        f"spglib with symprec={summary['symprec']:g} Å.",
    )


def _label(name: str) -> str:
    return QUANTITIES.get(name, name.removeprefix(PROPERTY_PREFIX))


def _range(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "-"
    return "  ".join(_number(figure[name]) for name in ("min", "mean", "max"))


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _element_list(elements: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} ({num})" for symbol, num in elements.items()) or "-"


def _space_groups(split: Mapping[str, Any]) -> str:
    total = sum(split["space_groups"].values())
    first = list(split["space_groups"].items())[:_MAX_GROUPS]
    return ", ".join(f"{number} ({num / total:.0%})" for number, num in first) or "-"


def _duplicates_table(summary: Mapping[str, Any]) -> SummaryTable:
    duplicates = summary["duplicates"]
    rows = [
        [
            f"repeats within {name}" if searched == name else f"{name} in {searched}",
            f"{duplicates['asked'][name]:,}",
            f"{num:,}",
            f"{duplicates['copies'][name][searched]:,}",
            f"{duplicates['cut_short'][name][searched]:,}",
            f"{duplicates['unanswered'][name][searched]:,}",
        ]
        for name, others in duplicates["found"].items()
        for searched, num in others.items()
    ]
    settings = settings_text(MatcherSettings(**duplicates["tolerances"]))
    note = (
        f"The matcher ({duplicates['matcher']}; {settings}; volumes scaled to be equal) compared "
        f"{duplicates['num_comparisons']:,} pairs of the same composition; "
        f"{duplicates['num_unanswered']:,} had no result (timeout or error). Copies have an rms "
        f"below {COPY_RMS:g}; other matches may be distortions of the same structure. A crystal "
        f"that could match more than {duplicates['max_compared']} crystals of a split was compared "
        f"only with the {duplicates['max_compared']} likeliest; 'cut short' counts the crystals "
        "that match none of these."
    )
    if num := duplicates["num_not_reduced"]:
        note += f" {num:,} crystals could not be reduced (timeout or error) and were not compared."
    if checked := duplicates["num_checked"]:
        note += (
            f" To estimate how many matches were missed, {checked:,} of the cut-short crystals, "
            "drawn at random, were compared with all candidates: "
            f"{duplicates['num_found_by_check']:,} matched, "
            f"{duplicates['num_copies_found_by_check']:,} as copies."
        )
    return SummaryTable(
        "Duplicates", ["", "searched", "found", "copies", "cut short", "unanswered"], rows, note
    )


def _rejected_table(summary: Mapping[str, Any], rejected: pd.DataFrame) -> SummaryTable:
    examples = rejected.drop_duplicates("kind").set_index("kind").to_dict("index")
    rows = [
        [kind, f"{num:,}", "{where} ({material_id}): {reason}".format_map(examples[kind])]
        for kind, num in summary["rejected"].items()
    ]
    return SummaryTable("Rejected", ["kind", "crystals", "first example"], rows, texts=(0, 2))


def _pairs_table(pairs: pd.DataFrame) -> SummaryTable:
    within = pairs["split"].astype(str) == pairs["in_split"].astype(str)
    shown = pairs.assign(within=within).sort_values(["within", "rms"])
    rows = [
        [
            *(str(row[name]) for name in ("split", "id", "in_split", "matches", "formula")),
            f"{row['rms']:.4f}",
            f"{row['volume_ratio']:.3f}",
        ]
        for row in shown.head(_MAX_ROWS).to_dict("records")
    ]
    header = ["split", "crystal", "in", "matches", "formula", "rms", "volume ratio"]
    note = (
        f"{len(rows):,} of {len(pairs):,} pairs: pairs across splits first, then by rms. "
        "duplicates.csv lists all pairs."
    )
    return SummaryTable("Duplicate pairs", header, rows, note, texts=range(5))


def _rejections_table(rejected: pd.DataFrame) -> SummaryTable:
    rows = [
        [str(row[name]) for name in ("where", "material_id", "reason")]
        for row in rejected.head(_MAX_ROWS).to_dict("records")
    ]
    note = f"{len(rows):,} of {len(rejected):,} rejected crystals. rejected.csv lists all of them."
    return SummaryTable("Rejected crystals", ["where", "id", "reason"], rows, note, range(3))


# Figures


def _figures(
    summary: Mapping[str, Any], crystals: pd.DataFrame, pairs: pd.DataFrame
) -> list[tuple[Figure, bool]]:
    """Each figure, and whether it spans the width of the page."""
    splits = [name for name in summary["splits"] if summary["splits"][name]["crystals"]]
    parts = {name: crystals[crystals["split"] == name] for name in splits}
    figures = [
        (_histogram({split: part[name] for split, part in parts.items()}, name), False)
        for name in quantity_names(crystals)
        if np.isfinite(crystals[name].astype(float)).any()
    ]
    figures.append((_bars(summary, splits, "crystal_systems", CRYSTAL_SYSTEMS), False))
    if len(pairs):
        rms = {name: pairs.loc[pairs["split"] == name, "rms"] for name in splits}
        figures.append((_histogram(rms, "rms", "rms of the duplicates in units of (V/N)^⅓"), False))
    elements = {symbol for name in splits for symbol in summary["splits"][name]["elements"]}
    ordered = sorted(elements, key=atomic_numbers.__getitem__)
    return [(_bars(summary, splits, "elements", ordered, wide=True), True), *figures]


def _histogram(values: Mapping[str, pd.Series], name: str, label: str | None = None) -> Figure:
    """Histogram of each split as fractions of its crystals; train filled, the others as lines."""
    finite = {
        split: part[np.isfinite(part.astype(float))].astype(float).to_numpy()
        for split, part in values.items()
    }
    everything = np.concatenate(list(finite.values()))
    figure, ax = _axes()
    edges = bin_edges(everything, is_whole=name in ("num_atoms", "num_elements"))
    for split, part in finite.items():
        if len(part):
            fractions = np.histogram(part, edges)[0] / len(part)
            _steps(ax, fractions, edges, split)
    num_outside = int(((everything < edges[0]) | (everything > edges[-1])).sum())
    text = label or _label(name)
    ax.set_xlabel(f"{text} ({num_outside:,} out of range)" if num_outside else text)
    if name in ("num_atoms", "num_elements"):
        ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    return figure


def bin_edges(values: np.ndarray, is_whole: bool = False) -> np.ndarray:
    """Bin edges for a histogram; the range excludes outliers that would squeeze all other bins.

    Args:
        values: finite values, at least one.
        is_whole: use one bin for each whole number, or for several if the range is large.
    """
    low, high = values.min(), values.max()
    if is_whole:
        step = -(-int(high - low + 1) // (2 * _NUM_BINS))
        return np.arange(low, high + step + 1, step) - 0.5
    near, far = np.quantile(values, [0.002, 0.998])
    low, high = max(low, near - (far - near) / 2), min(high, far + (far - near) / 2)
    if high <= low:  # all values are equal
        margin = abs(low) / 10 or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, _NUM_BINS + 1)


def _steps(ax: Axes, fractions: np.ndarray, edges: np.ndarray, split: str) -> None:
    is_train = split == "train"
    color = _COLORS.get(split, _TEXT)
    ax.stairs(fractions, edges, fill=is_train, color=color, linewidth=0 if is_train else 1.6)


def _bars(
    summary: Mapping[str, Any],
    splits: Sequence[str],
    key: str,
    names: Sequence[str] | Mapping[str, Any],
    wide: bool = False,
) -> Figure:
    """Fractions of the crystals of each split with each name; train as bars, others as dashes."""
    figure, ax = _axes(12.6 if wide else 4.2)
    positions = np.arange(len(names))
    others = [split for split in splits if split != "train"]
    for split in splits:
        counts = summary["splits"][split][key]
        total = summary["splits"][split]["crystals"] if wide else sum(counts.values())
        fractions = np.array([counts.get(name, 0) for name in names]) / max(total, 1)
        color = _COLORS.get(split, _TEXT)
        if split == "train":
            ax.bar(positions, fractions, 0.8, color=color)
        else:
            half = 0.4 / len(others)
            center = positions - 0.4 + half * (2 * others.index(split) + 1)
            ax.hlines(fractions, center - half, center + half, color=color, linewidth=2)
    ax.set_xticks(positions, names, rotation=0 if wide else 35, ha="center" if wide else "right")
    ax.tick_params(axis="x", length=0, labelsize=6.8 if wide else 9)
    ax.margins(x=0.005 if wide else 0.05)
    ax.set_ylim(bottom=0)
    if wide:
        ax.set_ylabel("crystals with the element")
    return figure


def _axes(width: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 2.6), layout="constrained")
    ax = figure.subplots()
    figure.patch.set_visible(False)
    ax.patch.set_visible(False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_FAINT)
    ax.tick_params(colors=_TEXT, labelsize=9, color=_FAINT)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_color(_TEXT)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.grid(axis="y", color=_FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    return figure, ax


def _svg(figure: Figure) -> str:
    """A figure as SVG to embed in the page, with the colors replaced by CSS variables."""
    out = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "xtal-latent"}):
        figure.savefig(out, format="svg", metadata=no_metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(xmlns(:\w+)?|width|height)="[^"]*"', "", text, count=4)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text


# The page


def write_inspection(
    path: Path,
    summary: Mapping[str, Any],
    crystals: pd.DataFrame,
    pairs: pd.DataFrame,
    rejected: pd.DataFrame,
) -> None:
    """Write the page that describes a data set, a file of about 100 kB.

    Args:
        path: the file to write.
        summary: the result of `src.commands.inspect_data.inspect_data`.
        crystals, pairs, rejected: the tables from `src.inspection.inventory`.
    """
    here = files("src.report")
    name = Path(summary["data_dir"]).name
    total = sum(split["crystals"] for split in summary["splits"].values())
    lists = [_pairs_table(pairs)] if len(pairs) else []
    lists += [] if rejected.empty else [_rejections_table(rejected)]
    drawn = "\n".join(
        f"<figure{' class=wide' if wide else ''}>{_svg(figure)}</figure>"
        for figure, wide in (_figures(summary, crystals, pairs) if total else [])
    )
    page = Template(files("src.inspection").joinpath("page.html").read_text("utf-8")).substitute(
        title=f"{total:,} crystals in {html.escape(name)}",
        style=here.joinpath("page.css").read_text("utf-8"),
        source=html.escape(summary["data_dir"]),
        line=html.escape(summary["line"]),
        tables="\n".join(map(_html_table, summary_tables(summary, rejected))),
        key="".join(
            f'<span><i style="background: var(--{split}, var(--text))"></i>{split}</span>'
            for split in summary["splits"]
        ),
        figures=drawn,
        lists="".join(f'<section class="tables">{_html_table(table)}</section>' for table in lists),
    )
    path.write_text(page, encoding="utf-8")


def _html_table(table: SummaryTable) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        tags = ["th", *[tag] * (len(cells) - 1)]
        return "".join(
            f"<{tag}{' class=text' if i in table.texts else ''}>{html.escape(cell)}</{tag}>"
            for i, (tag, cell) in enumerate(zip(tags, cells, strict=True))
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    return (
        f"<table><caption>{html.escape(table.title)}</caption>"
        f"<thead><tr>{row(table.header, 'th')}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>{html.escape(table.note)}</p>"
    )
