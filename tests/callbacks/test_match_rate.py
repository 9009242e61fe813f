"""Structure matching in real runs of a tiny VAE on rocksalt crystals."""

import csv
import logging
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from src.callbacks import MatchRate
from src.data import DataModule
from src.data.cif import Crystal, write_cif
from src.utils.errors import UserError
from src.vae_module import VAEModule

SMALL = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
ROCKSALT = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """32 rocksalt crystals with cells of 4 to 6 Å: 24 for training, 8 for validation."""
    folder = tmp_path_factory.mktemp("rocksalts")
    cifs = [
        write_cif(
            Crystal(
                a * np.eye(3), np.repeat([12, 8], 4), np.vstack([ROCKSALT, ROCKSALT + 0.5]) % 1
            ),
            name=f"MgO_{i}",
        )
        for i, a in enumerate(np.linspace(4, 6, 32))
    ]
    table = pd.DataFrame({"material_id": range(32), "cif": cifs})
    is_val = table.index % 4 == 0
    table[~is_val].to_csv(folder / "train.csv", index=False)
    table[is_val].to_csv(folder / "val.csv", index=False)
    return folder


class Echo(VAEModule):
    """Reconstructs every crystal perfectly."""

    def reconstruct(self, decoder_out, batch):
        return batch.replace()


def fit(cls, data_dir, path, callback: MatchRate, **kwargs):
    torch.manual_seed(0)
    vae = cls(
        {"_target_": "src.vae_module.encoders.transformer.TransformerEncoder", **SMALL},
        {"_target_": "src.vae_module.decoders.transformer.TransformerDecoder", **SMALL},
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(path, name="", version=""),
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **kwargs,
    )
    trainer.fit(vae, DataModule(data_dir, batch_size=12, cache_dir=data_dir / "cache"))
    with (path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/match_rate")]
    return vae, {int(r["step"]): (float(r["val/match_rate"]), float(r["val/rmse"])) for r in rows}


def test_every_so_many_epochs(data_dir, tmp_path, caplog):
    callback = MatchRate(every_n_epochs=2, num_crystals=5, max_share=None)
    with caplog.at_level(logging.INFO, "src.callbacks.match_rate"):
        vae, logged = fit(Echo, data_dir, tmp_path, callback, max_epochs=5)
    assert sorted(logged) == [3, 7]  # the last steps of epochs two and four, of two steps each
    for match_rate, rmse in logged.values():
        assert match_rate == 1.0
        assert rmse == pytest.approx(0, abs=1e-6)
    messages = [r.message for r in caplog.records if r.name == "src.callbacks.match_rate"]
    assert len(messages) == 2
    assert "match rate 100.0 %" in messages[0]
    assert "on 5 validation crystals" in messages[0]
    assert vae.training  # validation leaves the mode as it was


def test_an_untrained_model_in_bfloat16_matches_nothing(data_dir, tmp_path):
    """More crystals than there are, in mixed precision, after a sanity check that is not logged."""
    callback = MatchRate(every_n_epochs=1, num_crystals=1000)
    _, logged = fit(
        VAEModule,
        data_dir,
        tmp_path,
        callback,
        max_epochs=1,
        precision="bf16-mixed",
        num_sanity_val_steps=1,
    )
    assert list(logged) == [1]
    assert logged[1][0] == 0.0


def test_a_validation_that_would_take_more_than_its_share_is_passed_over(data_dir, tmp_path):
    """All validation crystals, in the first validation and none of the next."""
    callback = MatchRate(max_share=1e-6)
    assert fit(Echo, data_dir, tmp_path, callback, max_epochs=3)[1].keys() == {1}
    with pytest.raises(UserError, match="max_share must be between 0 and 1, not 2"):
        MatchRate(max_share=2)


@pytest.mark.parametrize("matcher", ["fast", "pymatgen"])
def test_either_matcher(data_dir, tmp_path, matcher):
    callback = MatchRate(num_crystals=3, matcher=matcher, num_workers=0)
    (figures,) = fit(Echo, data_dir, tmp_path, callback, max_epochs=1)[1].values()
    assert figures == (1.0, pytest.approx(0, abs=1e-6))


def test_never(data_dir, tmp_path):
    callback = MatchRate(every_n_epochs=0)
    assert fit(Echo, data_dir, tmp_path, callback, max_epochs=2)[1] == {}


@pytest.mark.parametrize("number", [0, -1])
def test_no_crystals_to_match_are_refused(number):
    with pytest.raises(UserError, match=r"at least 1, not .*every_n_epochs=0 switches"):
        MatchRate(num_crystals=number)


def test_it_does_not_touch_the_training(data_dir, tmp_path):
    runs = [
        fit(
            VAEModule,
            data_dir,
            tmp_path / str(n),
            MatchRate(every_n_epochs=n, num_crystals=4, max_share=None),
            max_epochs=2,
        )[0]
        for n in (0, 1)
    ]
    for without, with_it in zip(*(vae.parameters() for vae in runs), strict=True):
        assert torch.equal(without, with_it)


def test_it_can_be_sent_to_spawned_processes():
    callback = pickle.loads(pickle.dumps(MatchRate(every_n_epochs=3, num_crystals=7)))
    assert (callback.every_n_epochs, callback.num_crystals) == (3, 7)


def test_a_run_that_goes_on_matches_when_it_would_have(data_dir, tmp_path):
    """Every three epochs, of a run that ends after four: the sixth is due then."""
    first = MatchRate(every_n_epochs=3, num_crystals=2, max_share=None)
    assert fit(Echo, data_dir, tmp_path / "first", first, max_epochs=4)[1].keys() == {5}
    state = pickle.loads(pickle.dumps(first.state_dict()))
    assert state == {"next_epoch": 6}
    second = MatchRate(every_n_epochs=3, num_crystals=2, max_share=None)
    second.load_state_dict(state)
    assert second.state_dict() == state
