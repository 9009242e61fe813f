"""What ablations of all models share: budgets, runs in processes of their own, cells of tables."""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]


def limit_minutes(minutes: float) -> list[str]:
    """A time limit as overrides. The learning-rate schedule ends with it."""
    seconds = round(60 * minutes)
    clock = f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return [f"trainer.max_time={clock}", "trainer.max_epochs=-1"]


def train(command: str, run: Path, overrides: Sequence[str], threads: int) -> None:
    """Train in a separate process, unless the run exists already.

    Args:
        command: `train_vae` or `train_ldm`.
        run: the folder of the run.
        overrides: of its config.
        threads: for the process, unless `OMP_NUM_THREADS` is set.
    """
    if (run / "summary.json").is_file():
        return
    Console(stderr=True).print(f"training {run.parent.name}, seed {run.name}", style="bold")
    where = [f"hydra.run.dir={run}", "resume_from=last"]
    arguments = [sys.executable, str(ROOT / "src" / f"{command}.py"), *where, *overrides]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    subprocess.run(arguments, check=True, cwd=ROOT, env=environment)


def mean_and_range(values: Sequence[float], form: str, with_range: bool = True) -> str:
    """The mean over seeds, ± half the range if there are several seeds."""
    text = form.format(statistics.mean(values))
    if len(values) > 1 and with_range:
        text += f" ± {form.format((max(values) - min(values)) / 2)}"
    return text
