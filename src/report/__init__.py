"""Draw crystals and write the HTML report of an evaluation."""

from src.report.page import write_report
from src.report.pictures import draw_crystal, draw_pairs, draw_strip

__all__ = ["draw_crystal", "draw_pairs", "draw_strip", "write_report"]
