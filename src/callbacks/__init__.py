"""Lightning callbacks."""

from src.callbacks.duration_estimate import DurationEstimate
from src.callbacks.last_checkpoint import LastCheckpoint, StopWhenTold
from src.callbacks.learning_rate import LearningRate
from src.callbacks.match_rate import MatchRate
from src.callbacks.pictures import ReconstructionPictures, SamplePictures
from src.callbacks.progress_bar import ProgressBar
from src.callbacks.stop_at_nan import NonFiniteError, StopAtNaN
from src.callbacks.throughput import Throughput
from src.callbacks.validation_budget import ValidationBudget

__all__ = [
    "DurationEstimate",
    "LastCheckpoint",
    "LearningRate",
    "MatchRate",
    "NonFiniteError",
    "ProgressBar",
    "ReconstructionPictures",
    "SamplePictures",
    "StopAtNaN",
    "StopWhenTold",
    "Throughput",
    "ValidationBudget",
]
