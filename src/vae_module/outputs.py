"""The output of `VAEModule.decode`, and the metrics of a VAE over a split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from src.data.schema import CrystalBatch
from src.metrics.losses import LossAverages
from src.metrics.reconstruction.errors import ReconstructionErrors
from src.utils.errors import UserError
from src.utils.geometry import parameters_to_lattices
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.losses import PER_CRYSTAL


def decoded(prediction: Prediction, num_atoms: Tensor) -> dict[str, Tensor]:
    """The output of `VAEModule.decode`.

    Args:
        prediction: the decoder's output for N atoms and B crystals.
        num_atoms: (B,) number of atoms in each crystal.
    """
    lengths = prediction.lengths_scaled * num_atoms[:, None] ** (1 / 3)
    angles = prediction.angles_radians.rad2deg()
    out = {
        "frac_coords": prediction.frac_coords,
        "lengths": lengths,
        "angles": angles,
        "lattices": parameters_to_lattices(lengths, angles),
    }
    if prediction.atom_logits is not None:
        out["atom_types"] = prediction.atom_logits
    return out


def latents_to_decode(
    x: Tensor, num_atoms: Tensor | Sequence[int] | None, atom_types: Tensor | None
) -> dict[str, Tensor]:
    """The input of `VAEModule.decode` for latents alone.

    Args:
        x: (N, latent_dim).
        num_atoms: (B,) number of atoms in each crystal.
        atom_types: (N,) atomic numbers, if they are known.

    Raises:
        UserError: if `num_atoms` is missing, or does not add up to the number of latents.
    """
    if num_atoms is None:
        raise UserError("decode needs num_atoms as well, the number of atoms in each crystal")
    counts = torch.as_tensor(num_atoms, device=x.device)
    if int(counts.sum()) != len(x):
        raise UserError(f"num_atoms adds up to {int(counts.sum())}, but there are {len(x)} latents")
    index = torch.arange(len(counts), device=x.device)
    given = {"x": x, "num_atoms": counts, "batch": index.repeat_interleave(counts)}
    return given if atom_types is None else {**given, "atom_types": atom_types}


class SplitFigures(nn.Module):
    """The loss, its terms and the reconstruction errors over a whole split.

    Args:
        terms: names of the loss terms.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.losses = LossAverages(terms, PER_CRYSTAL)
        self.errors = ReconstructionErrors()

    def update(
        self, terms: Mapping[str, Tensor], reconstruction: CrystalBatch, batch: CrystalBatch
    ) -> None:
        """Add a batch: its loss terms, its reconstructions and its true crystals."""
        self.losses.update(terms, batch)
        self.errors.update(reconstruction, batch)

    def compute_and_reset(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The metrics of the batches added since the last call.

        Args:
            weights: the weight of each term in `loss`.
        """
        terms = self.losses.compute()
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        figures = {"loss": loss, **{f"{name}_loss": term for name, term in terms.items()}}
        figures |= self.errors.compute()
        self.losses.reset()
        self.errors.reset()
        return figures
