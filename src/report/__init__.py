"""Pictures of crystals, and the page that shows what an evaluation found."""

from src.report.page import write_report
from src.report.pictures import draw_crystal, draw_pairs, draw_strip

__all__ = ["draw_crystal", "draw_pairs", "draw_strip", "write_report"]
