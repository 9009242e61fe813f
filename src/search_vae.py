"""Search for hyperparameters: `python src/search_vae.py experiment=prototypes/vae_dng`."""

from omegaconf import DictConfig

from src.utils.entry import command


@command(config_name="search_vae")
def main(cfg: DictConfig) -> None:
    from src.commands.search import search

    search(cfg)


if __name__ == "__main__":
    main()
