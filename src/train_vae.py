"""Train a VAE of crystals: `python src/train_vae.py experiment=prototypes/vae_dng`."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("PROJECT_ROOT", str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.commands.train import train  # noqa: E402
from src.utils.errors import exit_on_user_error  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="train_vae")
@exit_on_user_error
def main(cfg: DictConfig) -> float:
    """Train, or search with `hparams_search=optuna`.

    Returns what a sweep minimizes: cRMSE, which does not depend on the loss weights.
    """
    if "hparams_search" in cfg:
        from src.commands.search import search  # which needs an extra

        return search(cfg).best_value
    return train(cfg)["crmse"]


if __name__ == "__main__":
    main()
