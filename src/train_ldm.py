"""Train a prior over the latents of a VAE:
`python src/train_ldm.py experiment=mp_20/ldm_dng vae_ckpt_path=PATH`."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.commands.train_ldm import train_ldm  # noqa: E402
from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="train_ldm")
@exit_on_user_error
def main(cfg: DictConfig) -> float:
    """Train; returns what a sweep minimizes."""
    return train_ldm(cfg)["best_val_loss"]


if __name__ == "__main__":
    main()
