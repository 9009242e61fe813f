"""Evaluate a checkpoint: `python src/eval_vae.py ckpt_path=logs/.../best.ckpt split=test`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="eval_vae")
def main(cfg: DictConfig) -> None:
    from src.commands.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
