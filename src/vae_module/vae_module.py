"""The LightningModule: the public calls, the steps, logging and optimizers; nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from ase import Atoms
from pymatgen.core import Structure
from torch import Tensor, nn

from src.base.module import CrystalModule, make_network
from src.data import augmentation as augment
from src.data.schema import CrystalBatch
from src.metrics.losses import LossAverages
from src.metrics.reconstruction.errors import ReconstructionErrors
from src.utils.errors import UserError
from src.utils.geometry import parameters_to_lattices
from src.utils.precision import full_precision
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.distribution import DiagonalGaussianDistribution
from src.vae_module.elements import check_loaders, check_splits, check_types, readers
from src.vae_module.features import Features, featurize
from src.vae_module.input import to_batch
from src.vae_module.latent_noise import channel_spread, draw_noise_levels
from src.vae_module.losses import COORDS_DELTA, LENGTHS_DELTA, PER_CRYSTAL, vae_loss

LOSS_WEIGHTS = {"atom_types": 1.0, "lengths": 1.0, "angles": 10.0, "frac_coords": 2.0, "kl": 1e-4}


class VAEModule(CrystalModule):
    """A variational autoencoder of crystals with one latent vector per atom.

    Everything that rebuilds the module travels in its checkpoints as plain types, so the networks
    are given as configs, or as objects that `src.utils.config.describe` can describe.

    Args:
        encoder: maps a `CrystalBatch` to (N, d_model); has the attribute `d_model`.
        decoder: maps (N, d_model) to a `Prediction`; has `d_model` and `atom_type_predict`.
        latent_dim: width of the latent.
        atom_type_predict: predict atom types (de novo generation, True) or be given them (crystal
            structure prediction, False). None: as the decoder has it.
        loss_weights: of the terms of `vae_loss`; those not named keep their defaults.
        coords_delta: error of cosines and sines from which on it is not squared; None: all are.
        lengths_delta: error of scaled lengths, in Å, from which on it is not; None: all are.
        translate: move each training crystal by a random fraction of its cell.
        rotate: rotate the cell of each training crystal at random; only an encoder that sees the
            matrix can tell.
        mask_ratio: share of atom types hidden from the encoder in training.
        jitter_ratio: share of atoms displaced before the encoder in training.
        jitter_std: of that displacement, in Å per direction.
        latent_noise: the decoder is trained to tell atom types from latents with noise on them, up
            to this many standard deviations of each channel. Without effect where types are given.
        noise_share: of the training crystals, the share that have it. Each has its own level,
            uniform up to `latent_noise`, and its geometry is not part of the loss.
        optimizer: config of a `torch.optim.Optimizer`, which is given the named parameters.
        scheduler: config of a `src.utils.schedules.Schedule`.
        quant_bias: biases in the maps to and from the latent.

    Raises:
        UserError: for a config that does not fit, naming what.
    """

    networks = ("encoder", "decoder")
    # when there were no such arguments, all errors were squared
    legacy_arguments: ClassVar = {"coords_delta": None, "lengths_delta": None}
    title = "A variational autoencoder of crystals"
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
        translate: bool = True,
        rotate: bool = False,
        mask_ratio: float = 0.0,
        jitter_ratio: float = 0.0,
        jitter_std: float = 0.1,
        latent_noise: float = 0.2,
        noise_share: float = 0.125,
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
                f"vae_module.atom_type_predict={atom_type_predict} but the decoder has "
                f"atom_type_predict={self.atom_type_predict}: set only the former"
            )
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise UserError(f"loss_weights has {sorted(unknown)}; it knows {list(LOSS_WEIGHTS)}")
        for name, delta in (("coords_delta", coords_delta), ("lengths_delta", lengths_delta)):
            if delta is not None and not delta > 0:
                raise UserError(f"{name}={delta} is not above zero; null: squared errors")
        if not 0 <= noise_share < 1:
            raise UserError(
                f"noise_share={noise_share} is not in [0, 1): without exact latents, "
                "geometry is not learned"
            )
        self.latent_dim = latent_dim
        self.loss_weights = {**LOSS_WEIGHTS, **(loss_weights or {})}
        self.coords_delta = coords_delta
        self.lengths_delta = lengths_delta
        self.translate = translate
        self.rotate = rotate
        self.mask_ratio = mask_ratio
        self.jitter_ratio = jitter_ratio
        self.jitter_std = jitter_std
        self.latent_noise = latent_noise
        self.noise_share = noise_share
        self.quant_bias = quant_bias

        self.quant_conv = nn.Linear(self.encoder.d_model, 2 * latent_dim, bias=quant_bias)
        self.post_quant_conv = nn.Linear(latent_dim, self.decoder.d_model, bias=quant_bias)
        terms = [name for name in LOSS_WEIGHTS if self.atom_type_predict or name != "atom_types"]
        self.val_losses = LossAverages(terms, PER_CRYSTAL)
        self.val_errors = ReconstructionErrors()
        self.test_losses = LossAverages(terms, PER_CRYSTAL)
        self.test_errors = ReconstructionErrors()
        self.save_config()

    def card_rows(self) -> list[tuple[str, str]]:
        predicted = self.atom_type_predict
        return [
            ("for", "de novo generation" if predicted else "crystal structure prediction"),
            ("latent", f"{self.latent_dim} numbers per atom"),
        ]

    # Public calls

    def encode(self, batch: CrystalBatch) -> dict[str, Any]:
        """Crystals to latents.

        Args:
            batch: its cells are taken as they are. `to_batch` and the `DataModule` of the training
                run give the cells that the model was trained on.

        Returns:
            A dict.

            - `posterior`: `DiagonalGaussianDistribution` over (N, latent_dim);
            - `x`: the latent (N, latent_dim) that `decode` decodes, the posterior's mean until one
              puts another there;
            - `num_atoms`, `batch`, `max_num_atoms` (and `atom_types`, where they are not
              predicted): of the batch.

        Raises:
            UserError: for an element that the model does not know, if the batch is on a CPU.
        """
        check_types(batch.atom_types, batch.batch, *readers(self), is_masked=self.mask_ratio > 0)
        hidden = self.encoder(batch)
        with full_precision(hidden):
            posterior = DiagonalGaussianDistribution(self.quant_conv(hidden.float()))
        return {"posterior": posterior, "x": posterior.mode(), **self._layout(batch)}

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Tensor]:
        """Latents to crystals.

        Args:
            encoded: as from `encode`; `x`, `num_atoms` and `batch` (and `atom_types`, where they
                are not predicted) are needed. It stays as it is.

        Returns:
            A dict.

            - `atom_types`: logits (N, max_num_elements), absent where types are not predicted;
            - `frac_coords`: (N, 3) in [0, 1);
            - `lengths`: (B, 3) Å; `angles`: (B, 3) degrees; `lattices`: (B, 3, 3) Å.

        Raises:
            UserError: if a key is missing, or for an element that the model does not know, if the
                latents are on a CPU.
        """
        needed = ["x", "num_atoms", "batch", *([] if self.atom_type_predict else ["atom_types"])]
        if missing := [key for key in needed if key not in encoded]:
            raise UserError(f"decode needs {needed}; {missing} missing from {list(encoded)}")
        if not self.atom_type_predict:
            check_types(encoded["atom_types"], encoded["batch"], self.decoder)
        return self._decoded(self._predict(encoded), encoded["num_atoms"])

    def reconstruct(self, decoder_out: Mapping[str, Tensor], batch: CrystalBatch) -> CrystalBatch:
        """The decoded crystals as a batch; atom types that were not predicted are `batch`'s."""
        logits = decoder_out.get("atom_types")
        return batch.replace(
            # class 0 is the mask token, which no crystal holds
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
    ) -> CrystalBatch | list[Atoms] | list[Structure]:
        """Decode latents drawn from the standard normal.

        Args:
            batch: `num_atoms` is needed of it (and `atom_types`, where they are not predicted);
                `CrystalBatch.for_sampling` makes one of these alone.
            return_atoms: give a list of ASE `Atoms`.
            return_structures: give a list of pymatgen `Structure`.
            generator: of the draw, on the module's device.

        Returns:
            A `CrystalBatch`, or a list as asked for.

        Raises:
            UserError: for atom types that the model does not know, or that are missing.
        """
        atom_types = None if self.atom_type_predict else batch.atom_types
        ask = CrystalBatch.for_sampling(batch.num_atoms, atom_types)
        if atom_types is not None:
            check_types(atom_types, ask.batch, self.decoder)
        ask = ask.to(self.device)
        x = torch.randn(len(ask.batch), self.latent_dim, generator=generator, device=self.device)
        crystals = self.reconstruct(self.decode({"x": x, **self._layout(ask)}), ask)
        if return_structures:
            return crystals.to_structure()
        return crystals.to_atoms() if return_atoms else crystals

    def to_batch(
        self, structures: Sequence[Structure] | Sequence[Atoms], cell: str | None = None
    ) -> CrystalBatch:
        """Crystals as the model was trained to see them, on its device.

        The same crystal has other latents in another cell. Training puts crystals into cells of
        one kind (`data.cell`); so does this, and logs how many it changed. The atoms of a
        `primitive` or `conventional` cell are not one to one those that were given.

        Args:
            structures: pymatgen `Structure`s or ASE `Atoms`; they stay as they are.
            cell: None: as in training (`niggli` for old checkpoints that do not record it); or
                `niggli`, `primitive`, `conventional` or `as_given`: see
                `src.data.cells.choose_cell`.

        Raises:
            UserError: if there are no structures, for one that is no crystal or has an element
                that the model does not know, named by its index, or for another `cell`.
        """
        return to_batch(self, structures, cell)

    def featurize(
        self,
        structures: Sequence[Structure] | Sequence[Atoms],
        batch_size: int = 256,
        cell: str | None = None,
    ) -> Features:
        """Latents of crystals as features: of each atom, and pooled for each crystal.

        Args:
            structures: pymatgen `Structure`s or ASE `Atoms`.
            batch_size: how many to encode at a time.
            cell: as for `to_batch`; by default the cells are those of training.

        Returns:
            `Features` with `per_atom`, a list of (n, latent_dim) in the order of the atoms that
            were given, and `pooled`, (B, latent_dim), both on the CPU and in the order of
            `structures`.

        Raises:
            ValueError: as `to_batch`.
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

    def _decoded(self, prediction: Prediction, num_atoms: Tensor) -> dict[str, Tensor]:
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

    # Training

    def setup(self, stage: str) -> None:
        check_splits(self, self.trainer, stage)

    def on_train_start(self) -> None:
        super().on_train_start()
        check_loaders(self, self.trainer, self.trainer.train_dataloader)

    def on_validation_start(self) -> None:
        check_loaders(self, self.trainer, self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        check_loaders(self, self.trainer, self.trainer.test_dataloaders)

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        generator = self.step_generator(batch_idx)
        self.seed_dropout(generator)
        target = self._augment(batch, generator)
        # what is hidden is hidden from the encoder alone
        encoded = {**self.encode(self._corrupt(target, generator)), **self._layout(target)}
        posterior = encoded["posterior"]
        noise = augment.draw_per_atom(torch.randn, target, self.latent_dim, generator)
        x = posterior.sample(noise=noise)
        geometry_weights = None
        if self.latent_noise and self.atom_type_predict:
            level, geometry_weights = draw_noise_levels(
                target, self.latent_noise, self.noise_share, generator
            )
            spread = channel_spread(posterior.mean, self.all_gather)  # type: ignore[arg-type]
            noise = augment.draw_per_atom(torch.randn, target, self.latent_dim, generator)
            x = x + level[target.batch, None] * spread * noise
        prediction = self._predict({**encoded, "x": x})
        loss, terms = self._loss(prediction, posterior, target, geometry_weights)
        self.last_step = {f"{name}_loss": term.detach() for name, term in terms.items()}
        if self.is_logged_step():
            figures = {"loss": loss.detach(), **self.last_step}
            self.log_figures("train", figures, sync_dist=True, batch_size=len(batch.num_atoms))
        return loss

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_losses, self.val_errors)

    def test_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_losses, self.test_errors)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_losses, self.val_errors)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_losses, self.test_errors)

    def _augment(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        if self.translate:
            batch = augment.random_translation(batch, generator)
        if self.rotate:
            batch = augment.random_rotation(batch, generator)
        return batch

    def _corrupt(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        if self.mask_ratio:
            batch = augment.mask_atom_types(batch, self.mask_ratio, generator)
        if self.jitter_ratio:
            batch = augment.jitter_coords(batch, self.jitter_ratio, self.jitter_std, generator)
        return batch

    def _loss(
        self,
        prediction: Prediction,
        posterior: DiagonalGaussianDistribution,
        batch: CrystalBatch,
        geometry_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return vae_loss(
            prediction,
            posterior,
            batch,
            self.loss_weights,
            self.coords_delta,
            self.lengths_delta,
            geometry_weights,
        )

    def _evaluate(
        self, batch: CrystalBatch, losses: LossAverages, errors: ReconstructionErrors
    ) -> None:
        encoded = self.encode(batch)
        prediction = self._predict(encoded)
        _, terms = self._loss(prediction, encoded["posterior"], batch)
        losses.update(terms, batch)
        errors.update(self.reconstruct(self._decoded(prediction, batch.num_atoms), batch), batch)

    def _log_evaluation(
        self, stage: str, losses: LossAverages, errors: ReconstructionErrors
    ) -> None:
        terms = losses.compute()
        loss = torch.stack([self.loss_weights[name] * term for name, term in terms.items()]).sum()
        figures = {"loss": loss, **{f"{name}_loss": term for name, term in terms.items()}}
        self.log_figures(stage, {**figures, **errors.compute()})
        losses.reset()
        errors.reset()
