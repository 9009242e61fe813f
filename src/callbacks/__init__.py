"""What Lightning calls during a run."""

from src.callbacks.match_rate import MatchRate
from src.callbacks.throughput import Throughput
from src.callbacks.validation_budget import ValidationBudget

__all__ = ["MatchRate", "Throughput", "ValidationBudget"]
