"""Encode crystals: `python src/encode_vae.py ckpt_path=PATH output=latents`."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.commands.encode import encode  # noqa: E402
from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="encode_vae")
@exit_on_user_error
def main(cfg: DictConfig) -> None:
    """Write the latents of a data set's splits."""
    encode(cfg)


if __name__ == "__main__":
    main()
