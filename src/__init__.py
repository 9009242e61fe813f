"""Latent representations of crystals. `docs/where.md` describes the code layout."""

from src.utils import moved_modules

moved_modules.install()
