"""Train a prior over the latents of a VAE:
`python src/train_ldm.py experiment=mp_20/ldm_dng vae_ckpt_path=PATH`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="train_ldm")
def main(cfg: DictConfig) -> float:
    """Train; returns what a sweep minimizes."""
    from src.commands.train_ldm import train_ldm

    return train_ldm(cfg)["best_val_loss"]


if __name__ == "__main__":
    main()
