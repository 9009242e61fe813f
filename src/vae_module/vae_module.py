"""The LightningModule: its public methods, steps and logging."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from ase import Atoms
from lightning import Callback
from pymatgen.core import Structure
from torch import Tensor, nn

from src.base.module import CrystalModule, make_network
from src.data import augmentation as augment
from src.data.schema import CrystalBatch
from src.utils.errors import UserError
from src.utils.precision import full_precision
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.distribution import DiagonalGaussianDistribution
from src.vae_module.elements import ElementCheck, check_types, readers
from src.vae_module.features import Features, featurize
from src.vae_module.input import to_batch
from src.vae_module.latent_noise import add_noise
from src.vae_module.losses import COORDS_DELTA, LENGTHS_DELTA, vae_loss
from src.vae_module.outputs import SplitFigures, decoded, latents_to_decode
from src.vae_module.settings import LOSS_WEIGHTS, check_settings, complete_loss_weights

TRANSLATIONS = {True: augment.random_translation, "half": augment.half_translation}


class VAEModule(CrystalModule):
    """A variational autoencoder (VAE) for crystals with one latent vector per atom.

    A checkpoint stores the constructor arguments as plain types, so the networks are passed as
    configs or as objects that `src.utils.config.describe` can describe.

    Args:
        encoder: maps a `CrystalBatch` to (N, d_model); has the attribute `d_model`.
        decoder: maps (N, d_model) to a `Prediction`; has `d_model` and `atom_type_predict`.
        latent_dim: latent channels per atom.
        atom_type_predict: True: atom types are predicted (de novo generation); False: they are
            given (crystal structure prediction); None: as in the decoder.
        loss_weights: weights of the terms of `vae_loss`; missing ones keep their defaults.
        coords_delta: see `frac_coords_loss`; None: quadratic.
        lengths_delta: in Å, see `lengths_loss`; None: quadratic.
        translate: shift the origin of each training crystal: True for anywhere, `half` by halves
            of the lattice vectors, each at random.
        rotate: rotate each training crystal at random, for an encoder that sees the lattice matrix.
        mask_ratio: share of atom types hidden from the encoder in training.
        jitter_ratio: share of atoms displaced before encoding in training.
        jitter_std: standard deviation of that displacement in Å, per direction.
        latent_noise: largest noise on the latents in training, in standard deviations of each
            channel, to make the prediction of atom types robust. No effect if they are given.
        noise_share: share of training crystals with such noise. Its level is drawn uniformly up to
            `latent_noise`.
        noise_geometry: whether the geometry of crystals with such noise is part of the loss.
        optimizer: config of a `torch.optim.Optimizer`, which receives the named parameters.
        scheduler: config of a `src.utils.schedules.Schedule`.
        quant_bias: use biases in the linear maps to and from the latent.

    Raises:
        UserError: if an argument cannot be used; the message names it.
    """

    networks = ("encoder", "decoder")
    # before these arguments existed, all errors were squared
    legacy_arguments: ClassVar = {"coords_delta": None, "lengths_delta": None}
    title = "A variational autoencoder for crystals"
    tags = ("variational-autoencoder",)

    def __init__(
        self,
        encoder: nn.Module | Mapping[str, Any],
        decoder: nn.Module | Mapping[str, Any],
        latent_dim: int = 8,
        atom_type_predict: bool | None = None,
        loss_weights: Mapping[str, float] | None = None,
        coords_delta: float | None = COORDS_DELTA,
        lengths_delta: float | None = LENGTHS_DELTA,
        translate: bool | str = True,
        rotate: bool = False,
        mask_ratio: float = 0.0,
        jitter_ratio: float = 0.0,
        jitter_std: float = 0.1,
        latent_noise: float = 0.2,
        noise_share: float = 0.125,
        noise_geometry: bool = False,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        quant_bias: bool = True,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.encoder = make_network(encoder)
        self.decoder = make_network(decoder)
        self.atom_type_predict: bool = self.decoder.atom_type_predict
        if atom_type_predict not in (None, self.atom_type_predict):
            raise UserError(
                f"vae_module.atom_type_predict={atom_type_predict}, but the decoder has "
                f"atom_type_predict={self.atom_type_predict}: set only the former"
            )
        if translate not in (False, *TRANSLATIONS):
            raise UserError(f"vae_module.translate must be true, false or half, not {translate!r}")
        check_settings(noise_share, coords_delta=coords_delta, lengths_delta=lengths_delta)
        self.latent_dim = latent_dim
        self.loss_weights = complete_loss_weights(loss_weights)
        self.coords_delta = coords_delta
        self.lengths_delta = lengths_delta
        self.translate = translate
        self.rotate = rotate
        self.mask_ratio = mask_ratio
        self.jitter_ratio = jitter_ratio
        self.jitter_std = jitter_std
        self.latent_noise = latent_noise
        self.noise_share = noise_share
        self.noise_geometry = noise_geometry
        self.quant_bias = quant_bias

        self.quant_conv = nn.Linear(self.encoder.d_model, 2 * latent_dim, bias=quant_bias)
        self.post_quant_conv = nn.Linear(latent_dim, self.decoder.d_model, bias=quant_bias)
        terms = [name for name in LOSS_WEIGHTS if self.atom_type_predict or name != "atom_types"]
        self.val_figures, self.test_figures = SplitFigures(terms), SplitFigures(terms)
        self.save_config()

    def card_rows(self) -> list[tuple[str, str]]:
        task = "de novo generation" if self.atom_type_predict else "crystal structure prediction"
        return [("for", task), ("latent", f"{self.latent_dim} numbers per atom")]

    @property
    def element_networks(self) -> tuple[nn.Module, ...]:
        """The networks that limit which elements it can be trained on."""
        return self.encoder, self.decoder

    # Public methods

    def encode(self, batch: CrystalBatch) -> dict[str, Any]:
        """Encode crystals as latents.

        Args:
            batch: crystals in the kind of cell that the model was trained on, as returned by
                `to_batch` or the `DataModule` of the training run. They are not converted here.

        Returns:
            A dict with the following entries.

            - `posterior`: `DiagonalGaussianDistribution` over (N, latent_dim).
            - `x`: (N, latent_dim), the latents that `decode` uses: the posterior mean, unless you
              replace it.
            - `num_atoms`, `batch`, `max_num_atoms` (and `atom_types`, if they are not predicted):
              as in the batch.

        Raises:
            UserError: for an element that the model does not know. A batch on a GPU is not checked.
        """
        check_types(batch.atom_types, batch.batch, *readers(self), is_masked=self.mask_ratio > 0)
        hidden = self.encoder(batch)
        with full_precision(hidden):
            posterior = DiagonalGaussianDistribution(self.quant_conv(hidden.float()))
        return {"posterior": posterior, "x": posterior.mode(), **self._layout(batch)}

    def decode(
        self,
        encoded: Mapping[str, Any] | Tensor,
        num_atoms: Tensor | Sequence[int] | None = None,
        atom_types: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Decode latents to crystals.

        Args:
            encoded: the output of `encode`. Only `x`, `num_atoms` and `batch` (and `atom_types`, if
                they are not predicted) are needed. It is not changed. Or the latents themselves,
                (N, latent_dim), the atoms of all crystals one after another.
            num_atoms: for latents alone, the number of atoms in each crystal, (B,).
            atom_types: for latents alone, (N,) atomic numbers, if they are not predicted.

        Returns:
            A dict with the following entries.

            - `atom_types`: (N, max_num_elements) logits, if atom types are predicted.
            - `frac_coords`: (N, 3) in [0, 1).
            - `lengths`: (B, 3) Å; `angles`: (B, 3) degrees; `lattices`: (B, 3, 3) Å.

        Raises:
            UserError: if a key is missing, or for an element that the model does not know; elements
                on a GPU are not checked.
        """
        if isinstance(encoded, Tensor):
            encoded = latents_to_decode(encoded, num_atoms, atom_types)
        needed = ["x", "num_atoms", "batch", *([] if self.atom_type_predict else ["atom_types"])]
        if missing := [key for key in needed if key not in encoded]:
            raise UserError(f"decode needs {needed}; {missing} missing in {list(encoded)}")
        if not self.atom_type_predict:
            check_types(encoded["atom_types"], encoded["batch"], self.decoder)
        return decoded(self._predict(encoded), encoded["num_atoms"])

    def reconstruct(self, decoder_out: Mapping[str, Tensor], batch: CrystalBatch) -> CrystalBatch:
        """The decoded crystals as a batch, with the atom types of `batch` if none are predicted."""
        logits = decoder_out.get("atom_types")
        return batch.replace(
            # class 0 is the mask token
            atom_types=batch.atom_types if logits is None else logits[:, 1:].argmax(dim=-1) + 1,
            frac_coords=decoder_out["frac_coords"],
            lattices=decoder_out["lattices"],
        )

    @torch.no_grad()
    def sample(
        self,
        batch: CrystalBatch,
        return_atoms: bool = False,
        return_structures: bool = False,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
    ) -> CrystalBatch | list[Atoms] | list[Structure]:
        """Decode latents, by default drawn from the standard normal distribution.

        Args:
            batch: defines `num_atoms` (and `atom_types`, if they are not predicted); create it with
                `CrystalBatch.for_sampling`.
            return_atoms: return a list of ASE `Atoms`.
            return_structures: return a list of pymatgen `Structure`.
            generator: source of randomness, on the module's device.
            latents: (N, latent_dim) to decode, such as those of a generative model; None: draw.

        Returns:
            A `CrystalBatch`, or such a list.

        Raises:
            UserError: if required atom types are missing, the latents are not of the atoms of
                `batch`, or the model does not know one of them.
        """
        atom_types = None if self.atom_type_predict else batch.atom_types
        ask = CrystalBatch.for_sampling(batch.num_atoms, atom_types)
        if atom_types is not None:
            check_types(atom_types, ask.batch, self.decoder)
        ask = ask.to(self.device)
        shape = (len(ask.batch), self.latent_dim)
        if latents is not None and latents.shape != shape:
            raise UserError(f"latents has the shape {tuple(latents.shape)}, not {shape}")
        if latents is None:
            x = torch.randn(shape, generator=generator, device=self.device)
        else:
            x = latents.to(self.device)
        crystals = self.reconstruct(self.decode({"x": x, **self._layout(ask)}), ask)
        if return_structures:
            return crystals.to_structure()
        return crystals.to_atoms() if return_atoms else crystals

    def to_batch(
        self, structures: Sequence[Structure] | Sequence[Atoms], cell: str | None = None
    ) -> CrystalBatch:
        """Convert crystals to a batch like those used in training, on the device of the model.

        Training converts all crystals to one kind of cell (`data.cell`), since the same crystal has
        different latents in different cells. This does the same, and logs how many were converted.

        Args:
            structures: pymatgen `Structure` or ASE `Atoms`. They are not changed.
            cell: `niggli`, `primitive`, `conventional` or `as_given`, see
                `src.data.cells.choose_cell`. None: as in training, or `niggli` for old checkpoints
                that do not record it.

        Raises:
            UserError: if `cell` does not exist, if there are no structures, or if one is not an
                ordered crystal or has an element that the model does not know; the message gives
                its index.
        """
        return to_batch(self, structures, cell)

    def featurize(
        self,
        structures: Sequence[Structure] | Sequence[Atoms],
        batch_size: int = 256,
        cell: str | None = None,
    ) -> Features:
        """Compute latents as features of crystals and their atoms.

        Args:
            structures: pymatgen `Structure` or ASE `Atoms`.
            batch_size: crystals encoded at a time.
            cell: as in `to_batch`.

        Returns:
            `Features` with `per_atom`, a list of (n, latent_dim) in the order of the given atoms,
            and `pooled`, (B, latent_dim), both on the CPU.

        Raises:
            UserError: as in `to_batch`.
        """
        return featurize(self, structures, batch_size, cell)

    def _layout(self, batch: CrystalBatch) -> dict[str, Any]:
        layout = {
            "num_atoms": batch.num_atoms,
            "batch": batch.batch,
            "max_num_atoms": batch.max_num_atoms,
        }
        return layout if self.atom_type_predict else {**layout, "atom_types": batch.atom_types}

    def _predict(self, encoded: Mapping[str, Any]) -> Prediction:
        with full_precision(encoded["x"]):
            hidden = self.post_quant_conv(encoded["x"])
        return self.decoder(
            hidden,
            encoded["num_atoms"],
            encoded["batch"],
            atom_types=encoded.get("atom_types"),
            max_num_atoms=encoded.get("max_num_atoms"),
        )

    # Training

    def configure_callbacks(self) -> list[Callback]:
        there = any(isinstance(callback, ElementCheck) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if there else [ElementCheck()]  # the trainer keeps it between calls

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        generator = self.step_generator(batch_idx)
        self.seed_dropout(generator)
        target = self._augment(batch, generator)
        # only the encoder sees the corrupted crystals; the targets stay intact
        encoded = {**self.encode(self._corrupt(target, generator)), **self._layout(target)}
        posterior = encoded["posterior"]
        noise = augment.draw_per_atom(torch.randn, target, self.latent_dim, generator)
        x = posterior.sample(noise=noise)
        geometry_weights = None
        if self.latent_noise and self.atom_type_predict:
            how = (self.latent_noise, self.noise_share, self.all_gather, generator)
            x, geometry_weights = add_noise(x, posterior.mean, target, *how)  # type: ignore[arg-type]
            if self.noise_geometry:
                geometry_weights = None
        prediction = self._predict({**encoded, "x": x})
        loss, terms = self._loss(prediction, posterior, target, geometry_weights=geometry_weights)
        self.last_step = {f"{name}_loss": term.detach() for name, term in terms.items()}
        self.log_training(loss, len(batch.num_atoms))
        return loss

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_figures)

    def test_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_figures)

    def on_validation_epoch_end(self) -> None:
        self.log_figures("val", self.val_figures.compute_and_reset(self.loss_weights))

    def on_test_epoch_end(self) -> None:
        self.log_figures("test", self.test_figures.compute_and_reset(self.loss_weights))

    def _augment(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        if self.translate:
            batch = TRANSLATIONS[self.translate](batch, generator)
        if self.rotate:
            batch = augment.random_rotation(batch, generator)
        return batch

    def _corrupt(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        if self.mask_ratio:
            batch = augment.mask_atom_types(batch, self.mask_ratio, generator)
        if self.jitter_ratio:
            batch = augment.jitter_coords(batch, self.jitter_ratio, self.jitter_std, generator)
        return batch

    @property
    def _loss(self) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        """`vae_loss` with the settings of this module."""
        return partial(
            vae_loss,
            weights=self.loss_weights,
            coords_delta=self.coords_delta,
            lengths_delta=self.lengths_delta,
        )

    def _evaluate(self, batch: CrystalBatch, figures: SplitFigures) -> None:
        encoded = self.encode(batch)
        prediction = self._predict(encoded)
        _, terms = self._loss(prediction, encoded["posterior"], batch)
        out = decoded(prediction, batch.num_atoms)
        figures.update(terms, self.reconstruct(out, batch), batch)
