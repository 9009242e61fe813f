"""Latent representations of crystals. `docs/where.md` says what is where."""

from src.utils import moved_modules

moved_modules.install()
