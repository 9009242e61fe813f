"""The public calls of `LDMModule`, its training step and its checkpoints."""

from pathlib import Path

import pytest
import torch
from ase import Atoms
from lightning import Callback, Trainer
from pymatgen.core import Structure
from torch.utils.data import DataLoader

from src.base.pretrained import restore
from src.data import CrystalBatch, DataModule
from src.data.dataset import CrystalDataset
from src.ldm_module import LDMModule
from src.ldm_module.origins import ORIGINS
from src.ldm_module.sampling import generate_crystals
from src.utils.checkpoints import CheckpointError, load_checkpoint
from src.utils.errors import UserError
from src.vae_module import VAEModule
from tests.ldm_module.conftest import COMPOSITIONS, CONDITIONS, DENOISER, TRAINING_SET, make_ldm

ROOT = Path(__file__).resolve().parents[2]


def draw(ldm: LDMModule, ask: CrystalBatch, **how):
    return ldm.sample(ask, sampling_steps=3, generator=torch.Generator().manual_seed(0), **how)


ASK = CrystalBatch.for_sampling(torch.tensor([2, 5]))
GIVEN = CrystalBatch.for_sampling(torch.tensor([2, 5]), torch.tensor([11, 17, 38, 22, 8, 8, 8]))


def test_samples():
    ldm = make_ldm()
    crystals = draw(ldm, ASK)
    assert crystals.num_atoms.tolist() == [2, 5]
    assert (crystals.atom_types > 0).all()
    atoms, structures = draw(ldm, ASK, return_atoms=True), draw(ldm, ASK, return_structures=True)
    assert all(isinstance(a, Atoms) for a in atoms)
    assert all(isinstance(s, Structure) for s in structures)
    assert [len(s) for s in structures] == [2, 5]
    assert torch.equal(draw(ldm, ASK).frac_coords, crystals.frac_coords)


def test_compositions_are_kept():
    crystals = draw(make_ldm(atom_type_predict=False), GIVEN)
    assert torch.equal(crystals.atom_types, GIVEN.atom_types)


def test_types_condition_the_denoiser():
    ldm = make_ldm(atom_type_predict=False)
    noise = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    other = GIVEN.replace(atom_types=GIVEN.atom_types + 1)
    assert (
        ldm.sample_latents(GIVEN, noise, 2) - ldm.sample_latents(other, noise, 2)
    ).abs().max() > 1e-3


def test_unknown_elements_are_refused():
    ask = CrystalBatch.for_sampling(torch.tensor([1]), torch.tensor([92]))
    with pytest.raises(UserError, match="U has atomic number 92"):
        draw(make_ldm(atom_type_predict=False), ask)


def test_guidance():
    """1 follows the condition, 0 ignores it, and others go along the line between."""
    ldm = make_ldm()
    with torch.no_grad():
        ldm.conditions.parts[0].nothing.fill_(1.0)
    noise = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))

    def latents(scale, conditions):
        return ldm.sample_latents(ASK, noise, 1, scale, conditions)

    nothing, asked = latents(1, None), latents(1, {"density": 5.0})
    torch.testing.assert_close(latents(0, {"density": 5.0}), nothing)
    assert (asked - nothing).abs().max() > 1e-3
    torch.testing.assert_close(latents(3, {"density": 5.0}), nothing + 3 * (asked - nothing))


def test_autoguidance():
    """0 samples the guide, 1 the denoiser, and others go along the line between, early on."""
    ldm = make_ldm()
    noise = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))

    def latents(scale, steps=1):
        return ldm.sample_latents(ASK, noise, steps, autoguidance=scale)

    guide, denoiser = latents(0), latents(1)
    assert (guide - denoiser).abs().max() > 1e-3
    torch.testing.assert_close(latents(3), guide + 3 * (denoiser - guide))
    ldm.guide = None  # it is not needed
    assert torch.equal(latents(1), denoiser)


@pytest.mark.parametrize("is_new", [True, False])
def test_the_guide_learns_early_only(prototypes, tmp_path, is_new):
    """And not at all, if the run starts from trained weights: it would become as good as they."""
    ldm = make_ldm(conditions=None, guide_share=0.5).train()
    if is_new:
        ldm.guide["denoiser"].load_state_dict(ldm.denoiser.state_dict())
    guides = [p.clone() for p in ldm.guide.parameters()]
    moved = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            now = [p.clone() for p in module.guide.parameters()]
            moved.append(any(not torch.equal(a, b) for a, b in zip(guides, now, strict=True)))
            guides[:] = now

    trainer = Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()],
        limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(ldm, prototypes)
    # the first average is of the initial weights alone
    assert moved == ([False, *[True] * 3, *[False] * 4] if is_new else [False] * 8)
    assert not any(p.requires_grad for p in ldm.guide.parameters())


def test_requests_that_cannot_be_met():
    ldm = make_ldm()
    with pytest.raises(UserError, match="sampling_steps"):
        ldm.sample(ASK, sampling_steps=0)
    with pytest.raises(UserError, match="'hardness'"):
        ldm.sample(ASK, conditions={"hardness": 1})
    ldm.latent_std.zero_()
    with pytest.raises(UserError, match="not been trained"):
        ldm.sample(ASK)
    with pytest.raises(UserError, match=r"origins must be one of .*not 'center'"):
        make_ldm(origins="center")
    with pytest.raises(UserError, match=r"pairing must be one of .*not 'sorted'"):
        make_ldm(pairing="sorted")
    for wrong in ({"time_std": 0.0}, {"condition_dropout": 1.5}, {"guide_share": 0.0}):
        with pytest.raises(UserError, match=r"time_std=.*condition_dropout="):
            make_ldm(**wrong)


def test_the_vae_is_not_trained(batch):
    ldm = make_ldm().train()
    mine = VAEModule(**{k: v for k, v in ldm.hparams["vae"].items() if k != "_target_"}).eval()
    LDMModule(mine, DENOISER)
    assert not mine.training
    assert all(p.requires_grad for p in mine.parameters())
    loss, _ = ldm._losses(batch, torch.Generator().manual_seed(0), 0.2, (0.0, 1.0))
    loss.mean().backward()
    assert all(p.grad is None for p in ldm.vae.parameters())
    missing = [n for n, p in ldm.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_a_step_does_not_change_the_batch(batch):
    before = batch.frac_coords.clone(), batch.atom_types.clone()
    make_ldm(origins="random")._losses(batch, torch.Generator().manual_seed(0), 0.2, (0.0, 1.0))
    assert torch.equal(batch.frac_coords, before[0])
    assert torch.equal(batch.atom_types, before[1])


def test_parts_of_a_batch_have_the_losses_of_the_whole(batch):
    """So that processes that share a batch take the step of a single one."""
    dataset, indices = CrystalDataset.from_batch(batch), torch.arange(3)
    ldm = make_ldm(origins="random")

    def losses(part: CrystalBatch) -> torch.Tensor:
        return ldm._losses(part, torch.Generator().manual_seed(0), 0.5, (0.0, 1.0))[0]

    parts = [losses(dataset.part(indices, rank, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts), losses(dataset.batch(indices)))


@pytest.mark.parametrize("name", ORIGINS)
def test_origins(name, batch):
    moved = ORIGINS[name](batch, torch.Generator().manual_seed(0))
    shift = (moved.frac_coords - batch.frac_coords) % 1
    for crystal in range(3):
        of_one = shift[batch.batch == crystal]
        apart = (of_one - of_one[:1] + 0.5) % 1 - 0.5
        torch.testing.assert_close(apart, torch.zeros_like(of_one), atol=1e-5, rtol=0)
    if name == "half":
        doubled = (2 * shift + 0.5) % 1 - 0.5
        torch.testing.assert_close(doubled, torch.zeros_like(shift), atol=1e-5, rtol=0)
    assert ((moved.frac_coords >= 0) & (moved.frac_coords < 1)).all()


def test_a_checkpoint_holds_everything(tmp_path, batch):
    ldm = make_ldm(origins="random", time_std=2.0)
    ldm.training_set = TRAINING_SET
    ldm.save_pretrained(tmp_path / "model")
    again = LDMModule.from_pretrained(tmp_path / "model")
    assert torch.equal(draw(again, ASK).frac_coords, draw(ldm, ASK).frac_coords)
    assert (again.origins, again.time_std) == ("random", 2.0)
    assert again.conditions.names == ["density", "gap", "chemical_system"]
    assert not any(p.requires_grad for p in again.vae.parameters())
    assert again.vae.training_set == again.training_set == TRAINING_SET


def test_networks_within_the_vae_must_fit_their_weights():
    """A config that asks for more layers than there are weights is refused at once."""
    ldm = make_ldm()
    content = {"state_dict": ldm.state_dict(), "hyper_parameters": dict(ldm.hparams)}
    restore(LDMModule, content, "it")
    vae = {**ldm.hparams["vae"], "encoder": {**ldm.hparams["vae"]["encoder"], "num_layers": 10**9}}
    content["hyper_parameters"] = {**content["hyper_parameters"], "vae": vae}
    with pytest.raises(CheckpointError, match="num_layers=1000000000"):
        restore(LDMModule, content, "it")


@pytest.fixture(scope="module")
def prototypes() -> DataModule:
    options = {"max_num_atoms": 4, "max_atomic_number": 59, "max_rejected": 1.0, "num_workers": 0}
    return DataModule(ROOT / "data" / "prototypes", batch_size=16, **options)


def fit(ldm: LDMModule, *data: DataModule | DataLoader, folder: Path, **options) -> Trainer:
    trainer = Trainer(
        max_steps=3, limit_val_batches=1, accelerator="cpu", logger=False, barebones=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(ldm, *data)
    return trainer


def test_training_learns_the_spread_of_latents(prototypes, tmp_path):
    conditions = {**CONDITIONS, "properties": ["density"]}
    ldm = make_ldm(conditions=conditions).train()
    ldm.latent_std.zero_()
    ldm.latent_mean.zero_()
    before = {name: p.clone() for name, p in ldm.named_parameters()}
    trainer = fit(ldm, prototypes, folder=tmp_path)
    dataset = prototypes.dataset("train")
    generator = torch.Generator().manual_seed(0)
    latents = ldm.encode(dataset.batch(torch.arange(len(dataset))), generator)
    torch.testing.assert_close(latents.std(0), torch.ones(4), atol=0.1, rtol=0)
    torch.testing.assert_close(latents.mean(0), torch.zeros(4), atol=0.1, rtol=0)
    density = ldm.conditions.parts[0]
    assert 1 < density.mean < 20
    changed = {name for name, p in ldm.named_parameters() if not torch.equal(p, before[name])}
    assert not any(name.startswith("vae.") for name in changed)
    assert any(name.startswith("denoiser.") for name in changed)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    load_checkpoint(path)
    again = LDMModule.load_from_checkpoint(path)
    assert torch.equal(again.latent_std, ldm.latent_std)
    assert again.training_set["num_crystals"] == len(dataset)
    assert torch.equal(draw(again, ASK).frac_coords, draw(ldm.eval(), ASK).frac_coords)


def test_training_without_a_data_module_is_refused(batch, tmp_path):
    ldm = make_ldm().train()
    ldm.latent_std.zero_()
    with pytest.raises(UserError, match="latent_mean and latent_std"):
        fit(ldm, *[DataLoader([batch], batch_size=None)] * 2, folder=tmp_path)


@pytest.mark.parametrize("atom_type_predict", [True, False])
def test_compositions_are_drawn_where_types_are_not_given(atom_type_predict):
    ldm = make_ldm(atom_type_predict, compositions=COMPOSITIONS)
    assert ldm.denoiser.atom_type_input
    assert ldm.conditions.names == ["density", "gap"]
    assert ldm.condition_names == ["density", "gap", "chemical_system"]
    types = torch.tensor([11, 17, 0, 0, 0, 38, 8])
    request = CrystalBatch.for_sampling(torch.tensor([2, 3, 2]), types)
    found = draw(ldm, request, conditions={"chemical_system": "K-O", "density": 3.0})
    assert found.atom_types[[0, 1, 5, 6]].tolist() == [11, 17, 38, 8]
    assert set(found.atom_types[2:5].tolist()) == {19, 8}
    assert types.tolist() == [11, 17, 0, 0, 0, 38, 8]
    every = draw(ldm, ASK)
    assert (every.atom_types > 0).all()
    with pytest.raises(UserError, match="crystal 1 has atom types of which some are 0"):
        draw(ldm, request.replace(atom_types=torch.tensor([11, 17, 0, 8, 0, 38, 8])))
    with pytest.raises(UserError, match="'hardness'"):
        draw(ldm, ASK, conditions={"hardness": 1})
    with pytest.raises(UserError, match="composition_temperature"):
        draw(ldm, ASK, composition_temperature=0.0)


def test_a_sample_with_a_drawn_composition_depends_on_seed_and_index_alone():
    ldm = make_ldm(compositions=COMPOSITIONS)
    for each in (ldm, ldm.vae):
        each.training_set = TRAINING_SET

    def samples(batch_size, **how):
        batches = generate_crystals(ldm, 5, sampling_steps=2, batch_size=batch_size, **how)
        return [structure for batch in batches for structure in batch.to_structure()]

    for one, other in zip(samples(2), samples(5), strict=True):
        assert one.species == other.species
        assert one.lattice.abc == pytest.approx(other.lattice.abc, rel=1e-4)
    given = samples(3, compositions=["NaCl", "SrTiO3"])
    assert [s.formula for s in given] == ["Na1 Cl1", "Sr1 Ti1 O3"] * 2 + ["Na1 Cl1"]
    with pytest.raises(UserError, match="settle chemical_system"):
        samples(3, compositions=["NaCl"], conditions={"chemical_system": "Li-O"})


def test_compositions_are_learned_first(prototypes, tmp_path):
    """Not by the optimizer of the denoiser; and once, if training goes on."""
    conditions = {**CONDITIONS, "properties": ["density", "num_elements"]}
    ldm = make_ldm(conditions=conditions, compositions=COMPOSITIONS, composition_epochs=1).train()
    ldm.latent_std.zero_()
    trainer = fit(ldm, prototypes, folder=tmp_path)
    assert ldm.compositions.is_trained
    learned = {name: p.clone() for name, p in ldm.compositions.named_parameters()}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = LDMModule.load_from_checkpoint(tmp_path / "last.ckpt").train()
    fit(again, prototypes, folder=tmp_path / "again")
    for name, parameter in again.compositions.named_parameters():
        assert torch.equal(parameter, learned[name]), name
    density = again.compositions.conditions.parts[0]
    assert torch.equal(density.mean, again.conditions.parts[0].mean)


def test_the_denoiser_takes_its_sizes_from_the_vae():
    assert "latent_dim" not in DENOISER
    ldm = make_ldm(atom_type_predict=False)
    assert ldm.denoiser.latent_dim == ldm.vae.latent_dim == 4
    assert ldm.denoiser.atom_type_input
    assert not make_ldm().denoiser.atom_type_input
