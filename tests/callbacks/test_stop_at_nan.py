"""Real runs of a module whose loss and gradient norm are scripted."""

from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from src.callbacks import NonFiniteError, StopAtNaN
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.utils.trainer import build_trainer

NAN, INF = float("nan"), float("inf")
FINE = {"lengths_loss": 0.25, "kl_loss": 2.0, "grad_norm": 1.0}


def make_batch(step: int) -> CrystalBatch:
    """One cubic crystal, which its cell identifies."""
    return CrystalBatch.from_tensors(
        torch.tensor([6]), torch.zeros(1, 3), (step + 1.0) * torch.eye(3)[None], torch.tensor([1])
    )


class Scripted(LightningModule):
    """In step 5 of 6, a value is not finite."""

    def __init__(self, at_fault: dict[str, float], val_loss: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.at_fault, self.val_loss = at_fault, val_loss
        self.last_step: dict[str, torch.Tensor] = {}

    def training_step(self, batch, batch_idx):
        values = {"loss": 1.0, **FINE, **(self.at_fault if self.global_step == 4 else {})}
        loss = values.pop("loss")
        self.last_step = {name: torch.tensor(value) for name, value in values.items()}
        return self.weight * loss

    def validation_step(self, batch, batch_idx):
        values = {"val/loss": self.val_loss, "val/kl_loss": 1.0, "val/rmse": NAN}
        self.log_dict(values, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(path, module: LightningModule) -> None:
    best = ModelCheckpoint(path, filename="best", monitor="val/loss")
    trainer = build_trainer(
        accelerator="cpu",
        default_root_dir=path,
        callbacks=[best, StopAtNaN()],
        logger=False,
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loader: DataLoader = DataLoader([make_batch(i) for i in range(3)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, loader)


@pytest.mark.parametrize(
    ("at_fault", "said"),
    [
        ({"loss": NAN, "kl_loss": INF}, r"in step 5, kl_loss is inf, loss is nan \(lengths_loss"),
        ({"grad_norm": INF}, r"in step 5, grad_norm is inf \(lengths_loss 0.25, kl_loss 2, loss 1"),
    ],
    ids=["loss", "gradient"],
)
def test_the_step_and_the_term_are_named_and_the_batch_is_kept(tmp_path, at_fault, said):
    with pytest.raises(NonFiniteError, match=said):
        fit(tmp_path, Scripted(at_fault))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.ckpt", "nan_batch_step_5.safetensors"}
    batch = CrystalDataset.load(tmp_path / "nan_batch_step_5.safetensors")
    assert torch.equal(batch.lattices, make_batch(1).lattices)  # the second of its epoch


def test_a_validation_loss_that_is_not_finite_comes_into_no_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"in the validation after step 3, val/loss is nan"):
        fit(tmp_path, Scripted({}, val_loss=NAN))
    assert list(tmp_path.glob("*.ckpt")) == []


def test_a_run_without_fault_ends(tmp_path):
    fit(tmp_path, Scripted({}))  # an RMSE of no matched pairs is NaN, and no fault
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


# On a device that the host does not wait for


def take_steps(
    tmp_path, callback: StopAtNaN, steps: range, bad: int, log_every_n_steps: int = 10
) -> None:
    for step in steps:
        trainer = SimpleNamespace(
            global_step=step,
            log_every_n_steps=log_every_n_steps,
            strategy=SimpleNamespace(root_device=torch.device("cuda")),
            default_root_dir=tmp_path,
            world_size=1,
        )
        loss = torch.tensor(NAN if step >= bad else 1.0)  # it stays NaN
        callback.on_train_batch_end(trainer, None, {"loss": loss}, make_batch(step), 0)  # type: ignore[arg-type]


def test_elsewhere_steps_are_looked_at_together_and_the_first_is_named(tmp_path):
    callback = StopAtNaN()
    take_steps(tmp_path, callback, range(1, 20), bad=13)
    with pytest.raises(NonFiniteError, match="in step 13, loss is nan"):
        take_steps(tmp_path, callback, range(20, 21), bad=13)
    batch = CrystalDataset.load(tmp_path / "nan_batch_step_13.safetensors")
    assert torch.equal(batch.lattices, make_batch(13).lattices)


def test_where_nothing_is_logged_they_are_looked_at_all_the_same(tmp_path):
    callback = StopAtNaN()
    with pytest.raises(NonFiniteError, match="in step 13, loss is nan"):
        take_steps(tmp_path, callback, range(1, 100), bad=13, log_every_n_steps=0)


def test_none_comes_into_a_checkpoint_without_a_look(tmp_path):
    callback = StopAtNaN()
    take_steps(tmp_path, callback, range(1, 5), bad=3)
    trainer = SimpleNamespace(default_root_dir=tmp_path, world_size=1)
    with pytest.raises(NonFiniteError, match="in step 3, loss is nan"):
        callback.on_save_checkpoint(trainer, None, {})  # type: ignore[arg-type]
