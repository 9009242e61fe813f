"""Sample crystals: `python src/sample_vae.py ckpt_path=PATH num_samples=10000`."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.commands.sample import sample  # noqa: E402
from src.utils.arguments import for_hydra  # noqa: E402
from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="sample_vae")
@exit_on_user_error
def main(cfg: DictConfig) -> None:
    """Write crystals that a checkpoint makes of latents drawn from the prior."""
    sample(cfg)


if __name__ == "__main__":
    sys.argv = for_hydra(sys.argv)
    main()
