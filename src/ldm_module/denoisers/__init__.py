"""Networks that predict latents from noisy latents."""

from src.ldm_module.denoisers.dit import DiT

__all__ = ["DiT"]
