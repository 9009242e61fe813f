"""Encode crystals: `python src/encode_vae.py ckpt_path=PATH output=latents`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="encode_vae")
def main(cfg: DictConfig) -> None:
    """Write the latents of a data set's splits."""
    from src.commands.encode import encode

    encode(cfg)


if __name__ == "__main__":
    main()
