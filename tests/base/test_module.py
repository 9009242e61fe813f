"""What every LightningModule here inherits, tested on a module unrelated to crystals."""

from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.base import CrystalModule
from src.base.module import make_network
from src.utils.checkpoints import CheckpointError, load_checkpoint, save_checkpoint


class Line(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Regression(CrystalModule):
    """Fits a line; its older checkpoints have no `scale`."""

    networks = ("network",)
    legacy_arguments = {"scale": 2.0}  # noqa: RUF012
    title = "A line"
    tags = ("regression",)

    def __init__(self, network, scale: float = 1.0, optimizer=None, scheduler=None) -> None:
        super().__init__(optimizer, scheduler)
        self.network = make_network(network)
        self.scale = scale
        self.save_config()

    def card_rows(self) -> list[tuple[str, str]]:
        return [("scale", f"{self.scale:g}")]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.scale * self.network(batch)).square().mean()
        if self.is_logged_step():
            self.log_figures("train", {"loss": loss.detach()})
        return loss


@pytest.fixture
def module(monkeypatch) -> Regression:
    # whose network is none of ours
    monkeypatch.setattr("src.base.pretrained.TRUSTED_MODULES", (__name__, "src", "torch.optim"))
    torch.manual_seed(0)
    return Regression(Line(4), scale=3.0, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1})


def fit(module: Regression, folder, **options) -> Trainer:
    trainer = Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.randn(16, 4), batch_size=4))
    return trainer


def test_a_checkpoint_rebuilds_it(module, tmp_path):
    module.training_set = {"num_crystals": 5, "num_atoms": {"2": 5}, "elements": {"8": 10}}
    save_checkpoint(module, tmp_path / "line.ckpt")
    found = Regression.load_from_checkpoint(tmp_path / "line.ckpt")
    assert (found.scale, found.network.width, found.training) == (3.0, 4, False)
    assert found.training_set == module.training_set
    assert torch.equal(found.network.linear.weight, module.network.linear.weight)


def test_a_checkpoint_older_than_an_argument(module, tmp_path):
    save_checkpoint(module, tmp_path / "line.ckpt")
    content = load_checkpoint(tmp_path / "line.ckpt")
    del content["hyper_parameters"]["scale"]
    torch.save(content, tmp_path / "old.ckpt")
    assert Regression.load_from_checkpoint(tmp_path / "old.ckpt").scale == 2.0
    assert Regression.load_from_checkpoint(tmp_path / "old.ckpt", scale=7.0).scale == 7.0


def test_a_folder_to_pass_on(module, tmp_path):
    module.save_pretrained(tmp_path / "line")
    assert Regression.from_pretrained(tmp_path / "line").scale == 3.0
    card = (tmp_path / "line" / "README.md").read_text()
    assert "# A line\n" in card
    assert "- regression\n" in card
    assert "| scale | 3 |\n| parameters | 5 |\n| trained on | not recorded |" in card
    assert "import Regression\n" in card


def test_a_file_of_another_class(module, tmp_path):
    class Other(CrystalModule):
        networks = ("encoder",)

    save_checkpoint(module, tmp_path / "line.ckpt")
    with pytest.raises(CheckpointError, match=r"line.ckpt is not a checkpoint of Other"):
        Other.load_from_checkpoint(tmp_path / "line.ckpt")


def test_it_trains_with_its_optimizer_and_schedule(module, tmp_path):
    before = module.network.linear.weight.detach().clone()
    trainer = fit(module, tmp_path, gradient_clip_val=1e-3)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert module.last_step["grad_norm"] > 1e-3
    change = (module.network.linear.weight - before).norm()
    assert 0 < change <= 4 * 0.1 * 1e-3 * 1.001  # steps times rate times clipped norm


@pytest.mark.parametrize(("every", "logged"), [(1, 4), (2, 2), (0, 0)])
def test_how_often_it_logs(module, tmp_path, monkeypatch, every, logged):
    names = []
    monkeypatch.setattr(module, "log", lambda name, value, **how: names.append(name))
    fit(module, tmp_path, log_every_n_steps=every)
    assert names == ["train/loss"] * logged


class TestRandomness:
    @staticmethod
    def at(module: Regression, step: int, batch_idx: int = 0, accumulated: int = 1) -> int:
        module.trainer = SimpleNamespace(
            accumulate_grad_batches=accumulated, global_step=step, global_rank=0,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(
                automatic_optimization=SimpleNamespace(optim_progress=None))),
        )  # fmt: skip
        return module.step_generator(batch_idx).initial_seed()

    def test_each_step_and_each_batch_in_it_has_its_own(self, module, monkeypatch):
        module._seed = 7
        steps = iter(range(100))
        monkeypatch.setattr(Regression, "global_step", property(lambda self: next(steps)))
        seeds = [self.at(module, 0) for _ in range(5)]
        assert len(set(seeds)) == 5
        monkeypatch.setattr(Regression, "global_step", property(lambda self: 3))
        assert self.at(module, 3, 1, 2) != self.at(module, 3, 0, 2)
        assert self.at(module, 3, 5) == self.at(module, 3, 9)  # whatever the epoch

    def test_dropout_differs_between_processes_and_repeats_within_one(self, module, monkeypatch):
        def draw(rank: int) -> Tensor:
            monkeypatch.setattr(Regression, "global_rank", property(lambda self: rank))
            module.seed_dropout(torch.Generator().manual_seed(11))
            return torch.rand(8)

        assert torch.equal(draw(0), draw(0))
        assert not torch.equal(draw(0), draw(1))


def test_what_is_logged_is_the_mean_over_crystals_since_the_last(module, monkeypatch):
    logged = []
    monkeypatch.setattr(module, "log_figures", lambda stage, figures, **_: logged.append(figures))
    monkeypatch.setattr(module, "is_logged_step", lambda: step == 1)
    module.trainer = SimpleNamespace(log_every_n_steps=2)
    for step, (loss, number) in enumerate([(2.0, 3), (10.0, 1)]):
        module.last_step = {"part": torch.tensor(loss / 2)}
        module.log_training(torch.tensor(loss), number)
        if step == 0:  # a run that continues here has the same sum
            checkpoint: dict = {"state_dict": {}}
            module.on_save_checkpoint(checkpoint)
            module._sums, module._num_summed = {}, 0
            module.on_load_checkpoint(checkpoint)
    assert [{name: float(value) for name, value in each.items()} for each in logged] == [
        {"loss": 4.0, "part": 2.0}
    ]
