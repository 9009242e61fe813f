"""Draw crystals, and write the HTML pages of evaluations, samples and judged sets."""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.report.judged import write_judged_report
    from src.report.page import write_report
    from src.report.pictures import draw_crystal, draw_pairs, draw_strip
    from src.report.samples import write_samples_report

__all__ = [
    "draw_crystal",
    "draw_pairs",
    "draw_strip",
    "write_judged_report",
    "write_report",
    "write_samples_report",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "draw_crystal": "pictures",
        "draw_pairs": "pictures",
        "draw_strip": "pictures",
        "write_judged_report": "judged",
        "write_report": "page",
        "write_samples_report": "samples",
    },
)
