"""Compare evaluations of generated crystals: `python src/compare_generated.py inputs=[A,B]`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="compare_generated")
def main(cfg: DictConfig) -> None:
    """Write the figures of several evaluations side by side."""
    from src.commands.compare_generated import compare_files

    compare_files(cfg)


if __name__ == "__main__":
    main()
