"""A prior over the latents of a VAE: a latent diffusion model (LDM) that generates crystals."""

from src.ldm_module.ldm_module import LDMModule

__all__ = ["LDMModule"]
