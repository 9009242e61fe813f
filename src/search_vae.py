"""Search for hyperparameters: `python src/search_vae.py experiment=prototypes/vae_dng`."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="search_vae")
@exit_on_user_error
def main(cfg: DictConfig) -> None:
    from src.commands.search import search  # here, so that a missing extra is said in one message

    search(cfg)


if __name__ == "__main__":
    main()
