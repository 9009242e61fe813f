"""The variational autoencoder (VAE) for crystals."""

from src.vae_module.distribution import DiagonalGaussianDistribution
from src.vae_module.vae_module import VAEModule

__all__ = ["DiagonalGaussianDistribution", "VAEModule"]
