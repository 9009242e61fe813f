"""What Lightning calls during a run."""

from src.callbacks.match_rate import MatchRate
from src.callbacks.throughput import Throughput

__all__ = ["MatchRate", "Throughput"]
