"""The LightningModule: its public calls, steps and logging."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from ase import Atoms
from lightning import Callback
from pymatgen.core import Structure
from torch import Tensor, nn
from torchmetrics import MeanMetric

from src.base.module import CrystalModule, make_network
from src.data import DataModule
from src.data import augmentation as augment
from src.data.schema import CrystalBatch
from src.ldm_module.composition_training import fit_compositions
from src.ldm_module.compositions import MAX_ELEMENTS, CompositionModel
from src.ldm_module.conditions import Conditions, beyond_composition, drop, of_some
from src.ldm_module.contacts import check_attempts, draw_apart
from src.ldm_module.flow import denoising_loss, draw_times, interpolate, precondition
from src.ldm_module.origins import ORIGINS
from src.ldm_module.pairing import PAIRINGS
from src.ldm_module.sizes import similar_sizes
from src.ldm_module.solver import solve
from src.ldm_module.statistics import fit_statistics
from src.utils.config import to_plain
from src.utils.errors import UserError
from src.utils.inference import inference
from src.utils.precision import full_precision
from src.utils.schedules import run_progress
from src.vae_module.datasets import decode_latents
from src.vae_module.elements import ElementCheck, check_types
from src.vae_module.vae_module import VAEModule

# Mean and std of the logit of the time of validation crystals. Late, a crystal's atoms have their
# places, so that the loss says how exactly. Early, it also grows when a model becomes surer of one
# out of several possible crystals, and the crystals then match more often.
VALIDATION_TIMES = (2.0, 1.0)
GUIDED_UNTIL = 0.5  # time up to which samples are guided away from the guide's predictions
GUIDE_DECAY = 0.999  # weight of the old average at each step


class LDMModule(CrystalModule):
    """A prior over the latents of a VAE, learned by flow matching.

    With a model of compositions, a crystal is made in two steps: first what it consists of, then
    where the atoms are. The denoiser is given the atom types, so it can also be asked for a
    composition.

    A checkpoint also holds the VAE, which is not trained, and the guide: an average of the
    denoiser's weights early in training. It makes the same mistakes as the denoiser, but larger
    ones, so samples become better when the difference between the two predictions is exaggerated
    (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself").

    Args:
        vae: the VAE.
        denoiser: predicts latents from noisy ones, see `src.ldm_module.denoisers`. In a config,
            `latent_dim` and `atom_type_input` are taken from the VAE.
        conditions: what can be asked for, see `src.ldm_module.conditions`. In a config, `d_model`
            is taken from the denoiser; with `compositions`, so is what does not follow from the
            composition, and the rest is asked of `compositions` alone. None: nothing.
        compositions: draws compositions, see `src.ldm_module.compositions`. In a config,
            `max_num_elements` and `conditions` are those of the denoiser. None: atom types are part
            of the latents or, if the VAE does not predict them, must be given.
        composition_epochs: epochs of the training of `compositions`, before the denoiser's.
        origins: one of `ORIGINS`.
        pairing: one of `PAIRINGS`.
        time_mean, time_std: distribution of the time in training, see `draw_times`.
        condition_dropout: how often conditions are hidden in training, see `conditions.drop`.
        guide_share: share of the training run after which the guide no longer changes.
        optimizer: config of a `torch.optim.Optimizer`, which is given the named parameters.
        scheduler: config of a `src.utils.schedules.Schedule`.

    Raises:
        UserError: for an argument that cannot be used; the message names it.
    """

    networks = ("vae", "denoiser", "conditions", "compositions")
    given = ("vae",)
    legacy_arguments: ClassVar[Mapping[str, Any]] = {"compositions": None}
    title = "A latent diffusion model of crystals"
    tags = ("latent-diffusion", "flow-matching")

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        vae: VAEModule | Mapping[str, Any],
        denoiser: nn.Module | Mapping[str, Any],
        conditions: nn.Module | Mapping[str, Any] | None = None,
        compositions: nn.Module | Mapping[str, Any] | None = None,
        composition_epochs: int = 16,
        origins: str = "as_given",
        pairing: str = "nearest",
        time_mean: float = -0.3,
        time_std: float = 1.5,
        condition_dropout: float = 0.2,
        guide_share: float = 0.125,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        for name, value, known in (("origins", origins, ORIGINS), ("pairing", pairing, PAIRINGS)):
            if value not in known:
                raise UserError(f"ldm_module.{name} must be one of {list(known)}, not {value!r}")
        if composition_epochs < 1:
            raise UserError(
                f"ldm_module.composition_epochs must be at least 1, not {composition_epochs}"
            )
        if not (time_std > 0 and 0 <= condition_dropout <= 1 and 0 < guide_share <= 1):
            raise UserError(
                f"ldm_module.time_std={time_std} must be above 0, condition_dropout="
                f"{condition_dropout} between 0 and 1, and guide_share={guide_share} above 0 and "
                "at most 1"
            )
        # a copy, since it is not to be trained, whatever its owner does with the given one
        self.vae: VAEModule = deepcopy(make_network(vae)).requires_grad_(False).train()
        # whether the denoiser is given atom types, by the user or by the model of compositions
        self.atom_type_input = compositions is not None or not self.vae.atom_type_predict
        if isinstance(denoiser, Mapping):
            of_vae = {"latent_dim": self.vae.latent_dim, "atom_type_input": self.atom_type_input}
            denoiser = {**to_plain(denoiser), **of_vae}
        self.denoiser = make_network(denoiser)
        d_model = self.denoiser.d_model
        if isinstance(conditions, Mapping):
            conditions = {**to_plain(conditions), "d_model": d_model}
            if isinstance(compositions, Mapping):
                size = {"max_num_elements": self.denoiser.max_num_elements}
                asked = {**conditions, **size}
                compositions = {**to_plain(compositions), **size, "conditions": asked}
                conditions = beyond_composition(conditions)
        self.conditions: Conditions = make_network(conditions or Conditions(d_model))
        self.compositions: CompositionModel | None = make_network(compositions)
        if self.compositions is not None:
            self.compositions.requires_grad_(False)  # trained before the others
        self.composition_epochs = composition_epochs
        self.origins = origins
        self.pairing = pairing
        self.time_mean = time_mean
        self.time_std = time_std
        self.condition_dropout = condition_dropout
        self.guide_share = guide_share
        parts = {"denoiser": self.denoiser, "conditions": self.conditions}
        self.guide = deepcopy(nn.ModuleDict(parts)).requires_grad_(False)
        # a run that starts from weights of another keeps their guide; None: not yet known
        self.guide_learns: bool | None = None
        # of each latent channel over the training set; a std of 0: not yet known
        self.register_buffer("latent_mean", torch.zeros(self.vae.latent_dim))
        self.register_buffer("latent_std", torch.zeros(self.vae.latent_dim))
        self.val_loss, self.val_latent_mse = MeanMetric(), MeanMetric()
        self.save_config()

    @property
    def atom_type_predict(self) -> bool:
        """Whether it can make up atom types (de novo generation) or must be given them."""
        return self.vae.atom_type_predict or self.compositions is not None

    @property
    def element_networks(self) -> tuple[nn.Module, ...]:
        """The networks that limit which elements it can be trained on."""
        drawn = () if self.compositions is None else (self.compositions,)
        return *self.vae.element_networks, self.denoiser, *drawn

    @property
    def condition_names(self) -> list[str]:
        """What can be asked for."""
        drawn = [] if self.compositions is None else self.compositions.conditions.names
        return list(dict.fromkeys([*self.conditions.names, *drawn]))

    def card_rows(self) -> list[tuple[str, str]]:
        asked = ", ".join(["number of atoms", *self.condition_names])
        return [*self.vae.card_rows(), ("conditions", asked)]

    # Public calls

    @torch.no_grad()
    def sample(
        self,
        batch: CrystalBatch,
        sampling_steps: int = 10,
        cfg_scale: float = 1.0,
        conditions: Mapping[str, Any] | None = None,
        return_atoms: bool = False,
        return_structures: bool = False,
        generator: torch.Generator | None = None,
        autoguidance: float = 3.0,
        composition_temperature: float = 0.7,
        attempts: int = 8,
    ) -> CrystalBatch | list[Atoms] | list[Structure]:
        """Generate crystals.

        Args:
            batch: `num_atoms` of the crystals and, to predict the structures of compositions, their
                `atom_types`, as from `CrystalBatch.for_sampling`. Types that are 0 are made up, in
                all atoms of a crystal or in none.
            sampling_steps: steps of the solver.
            cfg_scale: guidance: 1 follows the conditions as in the training data, more exaggerates
                them, 0 ignores them. No effect without conditions.
            conditions: what is asked for, by name, for all crystals or a list of one for each.
            return_atoms: return a list of ASE `Atoms`.
            return_structures: return a list of pymatgen `Structure`.
            generator: source of randomness, on the module's device.
            autoguidance: how far the denoiser's difference from the guide is exaggerated: 1 not at
                all, 0 samples the guide.
            composition_temperature: see `draw_compositions`.
            attempts: a crystal with atoms that are too close is drawn again, up to so many times in
                all, see `src.ldm_module.contacts`; 1: crystals stay as they are drawn first.

        Returns:
            A `CrystalBatch`, or such a list.

        Raises:
            UserError: for atom types that are needed and missing, or that the model does not know,
                or for a condition that it does not know or that cannot be met.
        """
        atom_types = batch.atom_types if self.atom_type_input else None
        ask = CrystalBatch.for_sampling(batch.num_atoms, atom_types)
        if atom_types is not None:
            networks = (self.vae.decoder, self.denoiser)
            check_types(atom_types, ask.batch, *networks, is_masked=self.atom_type_predict)
        ask = ask.to(self.device)
        if self.compositions is not None:
            each = (len(ask.num_atoms), MAX_ELEMENTS, 2)
            uniform = torch.rand(each, generator=generator, device=self.device)
            ask = self.draw_compositions(
                ask, uniform, cfg_scale, conditions, composition_temperature
            )

        def draw(part: CrystalBatch, indices: Tensor) -> Tensor:
            shape = (len(part.batch), self.vae.latent_dim)
            noise = torch.randn(shape, generator=generator, device=self.device)
            asked = of_some(conditions or {}, indices, len(ask.num_atoms))
            how = (sampling_steps, cfg_scale, asked)
            return self.sample_latents(part, noise, *how, autoguidance=autoguidance)

        check_attempts(attempts)
        latents = draw_apart(draw, self.decode, ask, attempts)
        crystals = self.decode(latents, ask)
        if return_structures:
            return crystals.to_structure()
        return crystals.to_atoms() if return_atoms else crystals

    def draw_compositions(
        self,
        batch: CrystalBatch,
        uniform: Tensor,
        cfg_scale: float = 1.0,
        conditions: Mapping[str, Any] | None = None,
        temperature: float = 0.7,
    ) -> CrystalBatch:
        """Draw the atom types of crystals in which they are 0; those of others stay.

        Args:
            batch: `num_atoms` and `atom_types`, on the module's device.
            uniform: (B, MAX_ELEMENTS, 2) uniformly distributed in [0, 1).
            cfg_scale, conditions: as for `sample`.
            temperature: see `CompositionModel.sample`.

        Raises:
            UserError: for a crystal in which only some types are 0, a condition that is unknown or
                cannot be met, or a temperature that is not above 0.
        """
        assert self.compositions is not None
        if temperature <= 0:
            raise UserError(f"composition_temperature must be above 0, not {temperature}")
        asked = self._parse(self.compositions.conditions, conditions or {}, len(batch.num_atoms))
        return self.compositions.complete(batch, uniform, asked, cfg_scale, temperature)

    def decode(self, latents: Tensor, batch: CrystalBatch) -> CrystalBatch:
        """Decode latents (N, latent_dim), with the atom types of `batch` if the denoiser was given
        them."""
        crystals = decode_latents(self.vae, latents, batch)
        if self.atom_type_input and self.vae.atom_type_predict:
            crystals = crystals.replace(atom_types=batch.atom_types)
        return crystals

    @torch.no_grad()
    def sample_latents(
        self,
        batch: CrystalBatch,
        noise: Tensor,
        sampling_steps: int = 10,
        cfg_scale: float = 1.0,
        conditions: Mapping[str, Any] | None = None,
        shift: float = 1.0,
        autoguidance: float = 3.0,
    ) -> Tensor:
        """Turn noise (N, latent_dim) into latents, (N, latent_dim), that the VAE can decode.

        Args:
            batch: `num_atoms` and, if the denoiser is given them, `atom_types`, on the module's
                device.
            sampling_steps, cfg_scale, autoguidance, conditions: as for `sample`.
            shift: see `src.ldm_module.solver.time_grid`.

        Raises:
            UserError: if the module has not been trained, or for an unknown condition.
        """
        asked = self.check_request(sampling_steps, conditions or {}, len(batch.num_atoms))
        guidance = (cfg_scale if conditions else 0.0, autoguidance)
        if batch.num_atoms.device.type != "cpu":
            x = self._solve(batch, noise, asked, sampling_steps, shift, guidance)
            return x * self.latent_std + self.latent_mean
        x = torch.empty_like(noise)
        for sizes in similar_sizes(batch.num_atoms):
            crystals = torch.isin(batch.num_atoms, sizes)
            atoms = crystals[batch.batch]
            part = CrystalBatch.for_sampling(batch.num_atoms[crystals], batch.atom_types[atoms])
            values = [each[crystals] for each in asked]
            x[atoms] = self._solve(part, noise[atoms], values, sampling_steps, shift, guidance)
        return x * self.latent_std + self.latent_mean

    def _solve(
        self,
        batch: CrystalBatch,
        noise: Tensor,
        asked: Sequence[Tensor],
        sampling_steps: int,
        shift: float,
        guidance: tuple[float, float],
    ) -> Tensor:
        """Normalized latents; `guidance` is `cfg_scale` and `autoguidance`."""
        num_crystals = len(batch.num_atoms)
        cfg_scale, autoguidance = guidance
        # crystals of one size and without conditions are told the same
        shared = cfg_scale == 0 and len(batch.batch) == num_crystals * batch.max_num_atoms
        nothing = self.conditions.nothing(1 if shared else num_crystals)

        def predict(x: Tensor, t: Tensor, guide: bool) -> Tensor:
            if cfg_scale == 0:
                return self._predict(x, t, batch, nothing, guide)
            predicted = self._predict(x, t, batch, asked, guide)
            if cfg_scale == 1:
                return predicted
            without = self._predict(x, t, batch, nothing, guide)
            return without + cfg_scale * (predicted - without)

        def denoise(x: Tensor, t: float) -> Tensor:
            times = x.new_full((1 if shared else num_crystals,), t)
            predicted = predict(x, times, guide=False)
            if autoguidance == 1 or t > GUIDED_UNTIL:
                return predicted
            worse = predict(x, times, guide=True)
            return worse + autoguidance * (predicted - worse)

        return solve(denoise, noise, sampling_steps, shift)

    def check_request(
        self, sampling_steps: int, conditions: Mapping[str, Any], num_crystals: int = 1
    ) -> list[Tensor]:
        """The values of conditions, see `Conditions.parse`.

        Raises:
            UserError: for a request that cannot be met.
        """
        if not bool((self.latent_std > 0).all()):
            raise UserError("this latent diffusion model has not been trained")
        if sampling_steps < 1:
            raise UserError(f"sampling_steps must be at least 1, not {sampling_steps}")
        return self._parse(self.conditions, conditions, num_crystals)

    def _parse(self, part: Conditions, asked: Mapping[str, Any], num_crystals: int) -> list[Tensor]:
        """The values of those conditions that a part of the model follows."""
        if unknown := set(asked) - set(self.condition_names):
            known = ", ".join(self.condition_names) or "none: it was trained without conditions"
            raise UserError(f"this model knows no condition {sorted(unknown)}; it knows {known}")
        return part.parse({k: v for k, v in asked.items() if k in part.names}, num_crystals)

    def _predict(
        self,
        x: Tensor,
        t: Tensor,
        batch: CrystalBatch,
        conditions: Sequence[Tensor],
        guide: bool = False,
    ) -> Tensor:
        """Predict clean, normalized latents (N, Z) from noisy ones at times `t`.

        They are (B,), or (1,) where all crystals are told the same.
        """
        parts = self.guide if guide else {"denoiser": self.denoiser, "conditions": self.conditions}
        with full_precision(x):
            skip, out, scale = precondition(t if len(t) == 1 else t[batch.batch, None])
            scaled = scale * x
        network = parts["denoiser"](
            scaled,
            t,
            batch.num_atoms,
            batch.batch,
            condition=parts["conditions"](conditions),
            atom_types=batch.atom_types if self.atom_type_input else None,
            max_num_atoms=batch.max_num_atoms,
        )
        with full_precision(x):
            return skip * x + out * network

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["guide_learns"] = self.guide_learns

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.guide_learns = checkpoint.get("guide_learns")
        self.vae.training_set, self.vae.read_options = self.training_set, self.read_options

    # Training

    def configure_callbacks(self) -> list[Callback]:
        there = any(isinstance(callback, ElementCheck) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if there else [ElementCheck()]  # a trainer keeps it from one call to the next

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.vae.training_set, self.vae.read_options = self.training_set, self.read_options
        if self.guide_learns is None:
            pairs = zip(self.guide.parameters(), self._guided_by(), strict=True)
            self.guide_learns = all(torch.equal(mine, trained) for mine, trained in pairs)
        untrained = self.compositions is not None and not self.compositions.is_trained
        if bool((self.latent_std > 0).all()) and not untrained:  # of a checkpoint
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, DataModule):
            raise UserError(
                "the latents and compositions of the training set are not known: train with a "
                "DataModule, or set latent_mean and latent_std"
            )
        dataset = datamodule.dataset("train")
        if self.compositions is not None and untrained:
            fit_compositions(
                self.compositions, dataset, self.composition_epochs, self.condition_dropout
            )
        if bool((self.latent_std > 0).all()):
            return
        mean, std = fit_statistics(self.vae, self.conditions, self.origins, dataset)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        self.guide["conditions"].load_state_dict(self.conditions.state_dict())

    @torch.no_grad()
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        step = self.global_step
        if self.guide_learns and run_progress(self.trainer, step) < self.guide_share:
            decay = min(GUIDE_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(self.guide.parameters()), self._guided_by(), 1 - decay)

    def _guided_by(self) -> list[Tensor]:
        """The parameters that those of the guide are an average of, in the same order."""
        return [*self.denoiser.parameters(), *self.conditions.parameters()]

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        generator = self.step_generator(batch_idx)
        self.seed_dropout(generator)
        times = (self.time_mean, self.time_std)
        loss, squared = self._losses(batch, generator, self.condition_dropout, times)
        loss = loss.sum() / batch.part.mean_num_atoms
        self.last_step = {"latent_mse": squared.detach().mean()}
        self.log_training(loss, len(batch.num_atoms))
        return loss

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        # the same noise every time, so that the loss of one epoch can be compared with another's
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        loss, squared = self._losses(batch, generator, 0.0, VALIDATION_TIMES)
        self.val_loss.update(loss)
        self.val_latent_mse.update(squared)

    def on_validation_epoch_end(self) -> None:
        figures = {"loss": self.val_loss, "latent_mse": self.val_latent_mse}
        self.log_figures("val", {name: metric.compute() for name, metric in figures.items()})
        for metric in figures.values():
            metric.reset()

    def encode(self, batch: CrystalBatch, generator: torch.Generator) -> Tensor:
        """Draw normalized latents (N, Z) of crystals from their posteriors.

        Args:
            batch: crystals as in training, with their origins.
            generator: source of randomness, on the module's device.
        """
        with inference(self.vae):
            posterior = self.vae.encode(batch)["posterior"]
            noise = augment.draw_per_atom(torch.randn, batch, self.vae.latent_dim, generator)
            return (posterior.sample(noise=noise) - self.latent_mean) / self.latent_std

    def compile_networks(self) -> None:
        """Compile the denoiser, which takes nearly all the time; see `CrystalModule`."""
        getattr(self.denoiser, "transformer", self.denoiser).compile(dynamic=True)

    def _losses(
        self,
        batch: CrystalBatch,
        generator: torch.Generator,
        dropout: float,
        times: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """See `denoising_loss`; `times` are the mean and std of `draw_times`."""
        batch = ORIGINS[self.origins](batch, generator)
        x_1 = self.encode(batch, generator)
        uniform = augment.draw_per_crystal(
            torch.rand, batch, 2 + len(self.conditions.names), generator
        )
        t = draw_times(uniform[:, 0], *times)
        noise = augment.draw_per_atom(torch.randn, batch, self.vae.latent_dim, generator)
        noise = PAIRINGS[self.pairing](x_1, noise, batch, self.atom_type_input)
        values = drop(self.conditions.values(batch), uniform[:, 1:], dropout)
        t_atoms = t[batch.batch, None]
        x_t = interpolate(x_1, noise, t_atoms)
        predicted = self._predict(x_t, t, batch, values)
        return denoising_loss(predicted, x_1, t_atoms)
