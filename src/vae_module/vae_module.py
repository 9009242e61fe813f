"""The LightningModule: the public calls, the steps, logging and optimizers; nothing else."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from ase import Atoms
from lightning import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pymatgen.core import Structure
from torch import Tensor, nn

from src.data import DataModule
from src.data import augmentation as augment
from src.data.schema import CrystalBatch
from src.metrics.losses import LossAverages
from src.metrics.reconstruction import ReconstructionErrors
from src.utils.checkpoints import load_checkpoint
from src.utils.config import build, describe, to_plain
from src.utils.geometry import parameters_to_lattices
from src.utils.precision import full_precision
from src.utils.schedules import Schedule, run_progress
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.distribution import DiagonalGaussianDistribution
from src.vae_module.features import Features, featurize
from src.vae_module.losses import COORDS_DELTA, LENGTHS_DELTA, PER_CRYSTAL, vae_loss
from src.vae_module.pretrained import (
    TRUSTED_MODULES,
    push_to_hub,
    read_pretrained,
    restore,
    save_pretrained,
)

log = logging.getLogger(__name__)

LOSS_WEIGHTS = {"atom_types": 1.0, "lengths": 1.0, "angles": 10.0, "frac_coords": 2.0, "kl": 1e-4}
OPTIMIZER = {"_target_": "src.utils.muon.Muon"}
SCHEDULER = {"_target_": "src.utils.schedules.WarmupCosine"}


class VAEModule(LightningModule):
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
        ValueError: for a config that does not fit, naming what.
    """

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
        super().__init__()
        self.encoder = _network(encoder)
        self.decoder = _network(decoder)
        self.atom_type_predict: bool = self.decoder.atom_type_predict
        if atom_type_predict not in (None, self.atom_type_predict):
            raise ValueError(
                f"vae_module.atom_type_predict={atom_type_predict} but the decoder has "
                f"atom_type_predict={self.atom_type_predict}: set only the former"
            )
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise ValueError(f"loss_weights has {sorted(unknown)}; it knows {list(LOSS_WEIGHTS)}")
        for name, delta in (("coords_delta", coords_delta), ("lengths_delta", lengths_delta)):
            if delta is not None and not delta > 0:
                raise ValueError(f"{name}={delta} is not above zero; null: squared errors")
        if not 0 <= noise_share < 1:
            raise ValueError(
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
        self.optimizer = to_plain(optimizer or OPTIMIZER)
        self.scheduler = to_plain(scheduler or SCHEDULER)
        self.quant_bias = quant_bias

        self.quant_conv = nn.Linear(self.encoder.d_model, 2 * latent_dim, bias=quant_bias)
        self.post_quant_conv = nn.Linear(latent_dim, self.decoder.d_model, bias=quant_bias)
        terms = [name for name in LOSS_WEIGHTS if self.atom_type_predict or name != "atom_types"]
        self.val_losses = LossAverages(terms, PER_CRYSTAL)
        self.val_errors = ReconstructionErrors()
        self.test_losses = LossAverages(terms, PER_CRYSTAL)
        self.test_errors = ReconstructionErrors()
        # what it was trained on, as `CrystalDataset.census` counts it; kept in checkpoints
        self.training_set: dict[str, Any] | None = None
        # terms of the loss and norm of the gradient in the last training step, for callbacks
        self.last_step: dict[str, Tensor] = {}
        self._seed: int | None = None  # of the run

        config = describe(self)
        del config["_target_"]
        self.save_hyperparameters(config)

    # Public calls

    def encode(self, batch: CrystalBatch) -> dict[str, Any]:
        """Crystals to latents.

        Returns:
            A dict.

            - `posterior`: `DiagonalGaussianDistribution` over (N, latent_dim);
            - `x`: the latent (N, latent_dim) that `decode` decodes, the posterior's mean until one
              puts another there;
            - `num_atoms`, `batch`, `max_num_atoms` (and `atom_types`, where they are not
              predicted): of the batch.
        """
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
            ValueError: if a key is missing.
        """
        needed = ["x", "num_atoms", "batch", *([] if self.atom_type_predict else ["atom_types"])]
        if missing := [key for key in needed if key not in encoded]:
            raise ValueError(f"decode needs {needed}; {missing} missing from {list(encoded)}")
        return self._present(self._predict(encoded), encoded["num_atoms"])

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
        """
        atom_types = None if self.atom_type_predict else batch.atom_types
        ask = CrystalBatch.for_sampling(batch.num_atoms, atom_types).to(self.device)
        x = torch.randn(len(ask.batch), self.latent_dim, generator=generator, device=self.device)
        crystals = self.reconstruct(self.decode({"x": x, **self._layout(ask)}), ask)
        if return_structures:
            return crystals.to_structure()
        return crystals.to_atoms() if return_atoms else crystals

    def featurize(
        self, structures: Sequence[Structure] | Sequence[Atoms], batch_size: int = 256
    ) -> Features:
        """Latents of crystals as features: of each atom, and pooled for each crystal.

        Cells are taken as they stand, and another cell of the same crystal has other latents.
        Training reduces cells to their Niggli form (unless `data.cell` is another), so that form
        is the one to give: `structure.get_reduced_structure("niggli")` of pymatgen, or
        `src.data.cif.niggli_reduce`.

        Args:
            structures: pymatgen `Structure`s or ASE `Atoms`.
            batch_size: how many to encode at a time.

        Returns:
            `Features` with `per_atom`, a list of (n, latent_dim), and `pooled`, (B, latent_dim),
            both on the CPU and in the order of `structures`.

        Raises:
            ValueError: if there are none, or for one that is no crystal or has an element that the
                model does not know, named by its index.
        """
        return featurize(self, structures, batch_size)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        strict: bool = True,
        weights_only: bool = True,
        **overrides: Any,
    ) -> Self:
        """The module of a checkpoint, in evaluation mode.

        Args:
            checkpoint_path: a `.ckpt` that this class wrote.
            map_location: as for `torch.load`; the CPU by default.
            strict: whether the weights must fit exactly.
            weights_only: accepted and without effect: no code is ever run from the file.
            overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it is not a checkpoint of this class; it says why.
        """
        content = load_checkpoint(checkpoint_path, map_location or "cpu")
        return restore(cls, content, checkpoint_path, strict, overrides)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder to pass on, whole or not at all.

        It holds `model.safetensors`, `config.json` (all that rebuilds the module, and
        `training_set`) and a model card, `README.md`.

        Args:
            folder: a new one.
            overwrite: replace such a folder.

        Raises:
            OutputError: if there is something at `folder` that is not to be replaced.
            CheckpointError: if a weight is not finite.
        """
        save_pretrained(self, folder, overwrite)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The module that `save_pretrained` or `push_to_hub` wrote, on the CPU, for evaluation.

        No code is ever run from the files.

        Args:
            source: a folder, or the name of a repository on the Hugging Face hub.
            revision: a branch, tag or commit there.
            cache_dir: where downloads are kept; by default where the hub's client keeps them.
            token: for a private repository; by default that of `hf auth login`.
            endpoint: address of the hub; by default HF_ENDPOINT, or the public one.
            local_files_only: use what was downloaded before, without a connection.

        Raises:
            CheckpointError: if it cannot be had, or is no such module; it says why.
        """
        content = read_pretrained(
            source,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=endpoint,
            local_files_only=local_files_only,
        )
        return restore(cls, content, source)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Publish what `save_pretrained` writes as a repository on the Hugging Face hub.

        Args:
            repo_id: `owner/name`; it is made if it is not there.
            private: whether a new repository is; by default as its owner has set it up.
            revision: a branch that is there; by default the main one.
            token, endpoint: as for `from_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: if the hub refuses or cannot be reached.
        """
        return push_to_hub(self, repo_id, private, revision, token, endpoint)

    def compile_networks(self) -> None:
        """Compile the Transformers in place, once for all shapes of batches.

        Names of parameters stay as they are. On a CPU, and for short runs, it does not pay.
        """
        for network in (self.encoder, self.decoder):
            network.transformer.compile(dynamic=True)

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

    def _present(self, prediction: Prediction, num_atoms: Tensor) -> dict[str, Tensor]:
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_set"] = self.training_set

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_set = checkpoint.get("training_set")

    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, DataModule):  # after a checkpoint to go on from was loaded
            self.training_set = datamodule.dataset("train").census()

    def on_train_start(self) -> None:
        # The schedule counts the steps of the run, for which Lightning makes the loader. So when it
        # comes to load the loader's state, to go on within an epoch, it takes that for done.
        self.trainer.fit_loop._load_combined_loader_states()

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        generator = self._generator(batch_idx)
        torch.manual_seed(generator.initial_seed() + 1)  # for dropout, which takes no generator
        target = self._augment(batch, generator)
        encoded = self.encode(self._corrupt(target, generator))
        posterior = encoded["posterior"]
        noise = augment.for_atoms(torch.randn, target, self.latent_dim, generator)
        x = posterior.sample(noise=noise)
        geometry_weights = None
        if self.latent_noise and self.atom_type_predict:
            level, geometry_weights = self._noise_levels(target, generator)
            x = x + self._latent_noise(posterior.mean, level, target, generator)
        prediction = self._predict({**encoded, "x": x})
        loss, terms = self._loss(prediction, posterior, target, geometry_weights)
        self.last_step = {f"{name}_loss": term.detach() for name, term in terms.items()}
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            # at other steps Lightning would drop it, and it costs time
            figures = {"loss": loss.detach(), **self.last_step}
            self._log("train", figures, sync_dist=True, batch_size=len(batch.num_atoms))
        return loss

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_losses, self.val_errors)

    def test_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_losses, self.test_errors)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_losses, self.val_errors)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_losses, self.test_errors)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build(
            self.optimizer, torch.optim.Optimizer, self.named_parameters(), allow=TRUSTED_MODULES
        )
        schedule = build(self.scheduler, Schedule, allow=TRUSTED_MODULES)  # type: ignore[type-abstract]

        def factor(step: int) -> float:
            return schedule(step, run_progress(self.trainer, step))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for a fused optimizer under mixed precision, since with a
        # gradient scaler that would be wrong; bfloat16 has no scaler.
        if self.trainer.precision == "16-mixed" or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            if isinstance(self.trainer.strategy, FSDPStrategy):  # which alone sees all the shards
                norm = self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)  # type: ignore[union-attr, operator]
            else:
                norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val, foreach=True)
            self.last_step["grad_norm"] = norm

    def _generator(self, batch_idx: int) -> torch.Generator:
        """The randomness of a training step, a function of seed, step and batch in it alone."""
        accumulated = self.trainer.accumulate_grad_batches
        index = self.global_step * accumulated + batch_idx % accumulated
        seed = torch.initial_seed() if self._seed is None else self._seed
        return torch.Generator(self.device).manual_seed((seed + 1_000_003 * index) % 2**63)

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

    def _noise_levels(
        self, batch: CrystalBatch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The level of noise on each crystal's latents, and its weight in geometry: (B,) each."""
        draw, level = augment.for_crystals(torch.rand, batch, 2, generator).unbind(dim=1)
        noisy = draw < self.noise_share
        return self.latent_noise * level * noisy, ~noisy / (1 - self.noise_share)

    def _latent_noise(
        self, mean: Tensor, level: Tensor, batch: CrystalBatch, generator: torch.Generator
    ) -> Tensor:
        # Over all processes, so that the spread does not depend on how a batch is shared. Its
        # gradient is kept: without it, larger latents would seem to escape the noise.
        moments = torch.stack([torch.ones_like(mean), mean, mean**2]).sum(dim=1)
        gathered: Tensor = self.all_gather(moments, sync_grads=True)  # type: ignore[assignment]
        count, first, second = gathered.view(-1, *moments.shape).sum(dim=0)
        spread = (second / count - (first / count) ** 2).clamp(min=1e-12).sqrt()
        noise = augment.for_atoms(torch.randn, batch, self.latent_dim, generator)
        return level[batch.batch, None] * spread * noise

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
        errors.update(self.reconstruct(self._present(prediction, batch.num_atoms), batch), batch)

    def _log_evaluation(
        self, stage: str, losses: LossAverages, errors: ReconstructionErrors
    ) -> None:
        terms = losses.compute()
        loss = torch.stack([self.loss_weights[name] * term for name, term in terms.items()]).sum()
        figures = {"loss": loss, **{f"{name}_loss": term for name, term in terms.items()}}
        self._log(stage, {**figures, **errors.compute()})
        losses.reset()
        errors.reset()

    def _log(self, stage: str, figures: Mapping[str, Tensor], **how: Any) -> None:
        for name, value in figures.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", **how)


def _network(given: Any) -> Any:
    """Built, where a config is given; Any, since torch takes a Module's attributes for tensors."""
    return build(given, nn.Module) if isinstance(given, Mapping) else given
