"""Latent representations of crystals. `docs/where.md` describes the code layout."""

import warnings

from src.utils import moved_modules

# what torch 2.14 says while torch_geometric is imported, and no user of either can change
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
moved_modules.install()
