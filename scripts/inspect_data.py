"""Inspect a data set before training: `python scripts/inspect_data.py data=mp_20`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="inspect_data")
def main(cfg: DictConfig) -> None:
    """Write a report on the data set and print a one-line summary."""
    from src.commands.inspect_data import inspect_data

    inspect_data(cfg)


if __name__ == "__main__":
    main()
