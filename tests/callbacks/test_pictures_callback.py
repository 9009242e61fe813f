"""Pictures in real runs of a tiny VAE on rocksalt crystals."""

import pickle

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader

from src.callbacks import ReconstructionPictures
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.utils.errors import UserError
from src.vae_module import VAEModule
from tests.crystals import rock_salt

SMALL = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}


class FakeWandb(WandbLogger):
    """Records its arguments and starts nothing."""

    def __init__(self):
        self.images = []

    def log_image(self, key, images, step=None, **kwargs):
        self.images.append((key, images, step))

    name = version = save_dir = property(lambda self: None)
    experiment = property(lambda self: None)

    def log_metrics(self, *args, **kwargs): ...
    def log_hyperparams(self, *args, **kwargs): ...
    def after_save_checkpoint(self, *args): ...
    def finalize(self, status): ...


@pytest.fixture(scope="module")
def crystals():
    structures = [rock_salt(a, "Mg", "O") for a in (4.1, 4.2, 4.3, 4.4)]
    return CrystalDataset.from_batch(CrystalBatch.from_structures(structures))


def fit(crystals, callback, loggers, cls=VAEModule, **kwargs):
    torch.manual_seed(0)
    vae = cls(
        {"_target_": "src.vae_module.encoders.transformer.TransformerEncoder", **SMALL},
        {"_target_": "src.vae_module.decoders.transformer.TransformerDecoder", **SMALL},
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=loggers,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **kwargs,
    )
    loader = DataLoader(crystals, batch_size=4, collate_fn=CrystalBatch.from_data_list)
    trainer.fit(vae, loader, loader)
    return vae


class Broken(VAEModule):
    """Reconstructs every crystal as NaN."""

    def reconstruct(self, decoder_out, batch):
        return batch.replace(frac_coords=torch.full_like(batch.frac_coords, torch.nan))


def test_every_logger_gets_its_picture(crystals, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wandb = FakeWandb()
    loggers = [
        CSVLogger(tmp_path, name="", version=""),
        TensorBoardLogger(tmp_path / "tensorboard", name=None, version=""),
        wandb,
    ]
    callback = ReconstructionPictures(every_n_epochs=2, num_crystals=3)
    vae = fit(crystals, callback, loggers, max_epochs=4)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["epoch_0002.png", "epoch_0004.png"]
    with Image.open(tmp_path / "pictures" / "epoch_0002.png") as picture:
        colors = picture.convert("RGB").getcolors(2**24)
        assert picture.width > 2 * picture.height / 3  # three pairs
        assert len(colors) > 100  # shaded spheres
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("val/reconstructions")] == [2, 4]
    ((key, (figure,), step), (_, _, last)) = wandb.images
    assert (key, step, last) == ("val/reconstructions", 2, 4)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "Validation, epoch 2"
    assert len(figure.axes) == 6
    assert vae.training  # validation leaves the mode as it was


def test_more_crystals_than_there_are_and_numbers_that_make_none(crystals, tmp_path):
    wandb = FakeWandb()
    callback = ReconstructionPictures(every_n_epochs=1, num_crystals=100)
    fit(crystals, callback, [wandb], Broken, max_epochs=1, num_sanity_val_steps=1)
    ((_, (figure,), step),) = wandb.images  # none of the sanity check
    assert step == 1
    assert len(figure.axes) == 8
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts.count("invalid structure") == 4


@pytest.mark.parametrize(
    ("every_n_epochs", "with_logger"), [(0, True), (1, False)], ids=["never", "no logger"]
)
def test_no_picture_where_none_is_wanted(
    crystals, tmp_path, monkeypatch, every_n_epochs, with_logger
):
    monkeypatch.setattr("src.callbacks.pictures.draw_pairs", pytest.fail)
    loggers = [CSVLogger(tmp_path, name="", version="")] if with_logger else False
    fit(crystals, ReconstructionPictures(every_n_epochs), loggers, max_epochs=1)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("number", [0, -1])
def test_no_crystals_to_draw_are_refused(number):
    with pytest.raises(UserError, match=r"at least 1, not .*every_n_epochs=0 switches"):
        ReconstructionPictures(num_crystals=number)


def test_a_continued_run_goes_on_where_it_was():
    callback = ReconstructionPictures(every_n_epochs=20)
    callback._next_epoch = 60
    other = ReconstructionPictures(every_n_epochs=20)
    other.load_state_dict(callback.state_dict())
    assert other._next_epoch == 60


def test_it_can_be_sent_to_spawned_processes():
    callback = pickle.loads(pickle.dumps(ReconstructionPictures(every_n_epochs=3, num_crystals=7)))
    assert (callback.every_n_epochs, callback.num_crystals) == (3, 7)
