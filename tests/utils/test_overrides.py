"""Mistakes on the command line are named, with what was probably meant."""

import pytest

from src.utils.entry import CONFIGS
from src.utils.errors import UserError
from src.utils.overrides import check_overrides

FINE = [
    "experiment=mp_20/vae_dng", "size=small", "data.batch_size=8", "vae_module.translate=half",
    "trainer.devices=auto", "trainer.max_time=5min", "+trainer.limit_train_batches=3",
    "++trainer.max_epochs=1", "vae_module.optimizer.lr=1", "data.max_num_atoms=null",
    "hydra.run.dir='a=b'", "~callbacks.pictures", "data.seed=${seed}",
    "+callbacks.mine._target_=src.callbacks.Throughput", "vae_module/optimizer=adamw",
]  # fmt: skip


def test_what_is_right_passes():
    check_overrides(CONFIGS, "train_vae", FINE)
    check_overrides(CONFIGS, "train_vae", ["-m", "seed=0,1", "vae_module.latent_dim=range(2,4)"])
    check_overrides(CONFIGS, "sample_ldm", ["++conditions.density=5.2", "ckpt_path='a=b'"])


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("train_vae", "data.bath_size=3", r"no setting bath_size in data; .*mean data.batch_size"),
        (
            "train_vae",
            "trainer.fast_dev_run=3",
            r"no setting fast_dev_run .* with \+trainer\.fast",
        ),
        ("train_vae", "batch_size=3", r"mean data\.batch_size\?"),
        ("train_vae", "siz=small", r"mean size\?"),
        ("train_vae", "experiment=mp_20", r"no experiment=mp_20: choose mp_20/ldm_csp, .*vae_dng"),
        ("train_vae", "size=smal", r"choose one of medium, small"),
        ("train_vae", "data.batch_size=abc", r"must be an integer, such as 256"),
        ("train_vae", "+x=y", r"nothing reads a setting x"),
        ("train_vae", "data=cif_folder", r"^data\.data_dir is not set: add data\.data_dir=VALUE"),
        ("train_vae", "task_name=a=b", r"task_name=a=b cannot be read: .*quote"),
        ("train_vae", "-m vae_module.latent_dim=2,x", r"latent_dim=x: .* must be an integer"),
        ("eval_vae", "ckpt_path=x overwrite=ja", r"overwrite must be true or false"),
    ],
)
def test_what_is_wrong_is_said(command, given, said):
    with pytest.raises(UserError, match=said):
        check_overrides(CONFIGS, command, given.split())
