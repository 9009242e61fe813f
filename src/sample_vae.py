"""Sample crystals: `python src/sample_vae.py ckpt_path=PATH num_samples=10000`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="sample_vae")
def main(cfg: DictConfig) -> None:
    """Write crystals that a checkpoint makes of latents drawn from the prior."""
    from src.commands.sample import sample

    sample(cfg)


if __name__ == "__main__":
    main()
