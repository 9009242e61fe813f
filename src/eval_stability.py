"""Judge how stable crystals are: `python src/eval_stability.py input=FOLDER output=FOLDER`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="eval_stability")
def main(cfg: DictConfig) -> None:
    """Write energies, forces and distances to the hull of a set of crystals."""
    from src.commands.evaluate_stability import evaluate_stability

    evaluate_stability(cfg)


if __name__ == "__main__":
    main()
