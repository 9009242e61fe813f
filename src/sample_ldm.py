"""Generate crystals: `python src/sample_ldm.py ckpt_path=PATH num_samples=10000`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="sample_ldm")
def main(cfg: DictConfig) -> None:
    """Write crystals that a latent diffusion model generates."""
    from src.commands.sample import sample_ldm

    sample_ldm(cfg)


if __name__ == "__main__":
    main()
