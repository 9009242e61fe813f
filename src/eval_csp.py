"""Evaluate predicted structures: `python src/eval_csp.py input=FOLDER reference=FOLDER`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="eval_csp")
def main(cfg: DictConfig) -> None:
    """Write how often samples for given compositions match the real crystals."""
    from src.commands.evaluate_csp import evaluate_csp

    evaluate_csp(cfg)


if __name__ == "__main__":
    main()
