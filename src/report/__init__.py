"""Draw crystals and write the HTML pages of evaluations and of samples."""

from src.report.page import write_report
from src.report.pictures import draw_crystal, draw_pairs, draw_strip
from src.report.samples import write_samples_report

__all__ = ["draw_crystal", "draw_pairs", "draw_strip", "write_report", "write_samples_report"]
