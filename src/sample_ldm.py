"""Generate crystals: `python src/sample_ldm.py ckpt_path=PATH num_samples=10000`."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.commands.sample import sample_ldm  # noqa: E402
from src.utils.arguments import for_hydra  # noqa: E402
from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="sample_ldm")
@exit_on_user_error
def main(cfg: DictConfig) -> None:
    """Write crystals that a latent diffusion model generates."""
    sample_ldm(cfg)


if __name__ == "__main__":
    sys.argv = for_hydra(sys.argv)
    main()
