"""Reconstruct crystals: `python src/reconstruct.py ckpt_path=PATH input=PATH output=FOLDER`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="reconstruct")
def main(cfg: DictConfig) -> None:
    """Write the crystals of files as a checkpoint reconstructs them."""
    from src.commands.reconstruct import reconstruct

    reconstruct(cfg)


if __name__ == "__main__":
    main()
