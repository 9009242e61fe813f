"""Train a VAE of crystals: `python src/train_vae.py experiment=prototypes/vae_dng`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="train_vae")
def main(cfg: DictConfig) -> float:
    """Train, or search with `hparams_search=optuna`.

    Returns what a sweep minimizes: cRMSE, which does not depend on the loss weights.
    """
    if "hparams_search" in cfg:
        from src.commands.search import search  # which needs an extra

        return search(cfg).best_value
    from src.commands.train import train

    return train(cfg)["crmse"]


if __name__ == "__main__":
    main()
