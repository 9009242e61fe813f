"""Evaluate generated crystals: `python src/eval_generated.py input=FOLDER reference=FOLDER`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="eval_generated")
def main(cfg: DictConfig) -> None:
    """Write the figures of a set of generated crystals."""
    from src.commands.evaluate_generated import evaluate_files

    evaluate_files(cfg)


if __name__ == "__main__":
    main()
