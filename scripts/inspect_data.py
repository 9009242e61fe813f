"""Inspect a data set before training: `python scripts/inspect_data.py data=mp_20`."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.commands.inspect_data import inspect_data  # noqa: E402
from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="inspect_data")
@exit_on_user_error
def main(cfg: DictConfig) -> None:
    """Write a report on the data set and print a one-line summary."""
    inspect_data(cfg)


if __name__ == "__main__":
    main()
