"""Metrics. Import the matcher's public functions from here: `from src.metrics import match`."""

from src.metrics.structure_matching.calls import FirstMatch, first_match, match, match_matrix
from src.metrics.structure_matching.crystals import PreparedCrystals
from src.metrics.structure_matching.judging import Workers

__all__ = ["FirstMatch", "PreparedCrystals", "Workers", "first_match", "match", "match_matrix"]
