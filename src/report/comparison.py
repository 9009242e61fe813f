"""Write the HTML page that compares evaluations, a single file that works offline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.metrics.generation.comparison import Row
from src.report.frame import fill_frame
from src.utils.strict_json import json_ready


def write_comparison(
    path: Path, names: Sequence[str], rows: Sequence[Row], differing: Mapping[str, Sequence[Any]]
) -> None:
    """Write the page to a new file.

    Args:
        path: of the file.
        names: of the runs.
        rows: the figures.
        differing: settings that are not the same in all runs, with the value of each.
    """
    data = {
        "names": list(names),
        "rows": [json_ready(asdict(row)) for row in rows],
        "differing": {
            setting: ["–" if value is None else str(value) for value in values]
            for setting, values in differing.items()
        },
    }
    page = fill_frame("compare", f"{len(names)} evaluations compared", data)
    path.write_text(page, encoding="utf-8")
