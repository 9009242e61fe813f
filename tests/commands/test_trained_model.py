"""What commands load from a checkpoint: the model, and the data of its run."""

from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pymatgen.core import Lattice, Structure

from src.commands.train import train
from src.commands.trained_model import load_data, load_vae
from src.commands.training_run import _keep_splits
from src.data import DataError, DataModule
from src.data.parsing import ReadOptions
from src.data.structures import write_structures
from src.utils.checkpoints import save_checkpoint
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
DATA = {
    "_target_": "src.data.DataModule", "data_dir": "data/of the run", "batch_size": 12,
    "eval_batch_size": 34, "properties": ["gap"], "cell": "primitive", "max_num_atoms": 20,
    "cache_dir": "cache of the run",
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "run"
    torch.manual_seed(0)
    vae = VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES), latent_dim=4)
    save_checkpoint(vae, folder / "checkpoints" / "best.ckpt")
    OmegaConf.save({"data": DATA, "seed": 0}, folder / "config.yaml")
    return folder


@pytest.fixture
def make_config(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))

    def make(*overrides: str, command: str = "eval_vae") -> DictConfig:
        given = [f"ckpt_path={run_dir}/checkpoints/best.ckpt", *overrides]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose(command, overrides=given)

    return make


def test_the_model_is_on_the_device_that_one_says(make_config):
    assert load_vae(make_config("device=cpu")).device.type == "cpu"
    vae = load_vae(make_config("device=meta"))
    assert vae.device.type == "meta"
    assert not vae.training


def test_a_device_that_is_not_there_is_a_message(make_config):
    with pytest.raises(ValueError, match="device=gpu cannot be used"):
        load_vae(make_config("device=gpu"))


def test_a_checkpoint_may_lie_below_home(make_config, run_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(run_dir))
    assert load_vae(make_config("ckpt_path='~/checkpoints/best.ckpt'")).latent_dim == 4


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_if_there_is_one(make_config, monkeypatch, there, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(VAEModule, "to", lambda self, device: asked.append(device) or self)
    load_vae(make_config())
    assert asked == [expected]


def test_the_data_are_those_of_the_run(make_config):
    data = load_data(make_config())
    assert data.data_dir == Path("data/of the run")
    assert data.cache_dir == Path("cache of the run")
    assert (data.batch_size, data.eval_batch_size, data.properties) == (12, 34, ("gap",))
    assert (data.read_options.cell, data.read_options.max_num_atoms) == ("primitive", 20)


@pytest.mark.parametrize(("niggli", "cell"), [(True, "niggli"), (False, "as_given")])
def test_runs_that_knew_two_cells_are_understood(make_config, run_dir, niggli, cell):
    old = {name: value for name, value in DATA.items() if name != "cell"} | {"niggli": niggli}
    OmegaConf.save({"data": old}, run_dir / "config.yaml")
    assert load_data(make_config()).read_options.cell == cell


def test_what_one_says_replaces_what_the_run_says(make_config):
    data = load_data(make_config("data.data_dir=other", "data.eval_batch_size=5"))
    assert (data.data_dir, data.eval_batch_size) == (Path("other"), 5)
    assert (data.properties, data.read_options.cell) == (("gap",), "primitive")
    assert load_data(make_config("+data.properties=[]")).properties == ()


@pytest.fixture
def trained_on(run_dir):
    """Record in the checkpoint how its training crystals were read."""

    def record(cell: str, max_num_atoms: int | None = None) -> None:
        path = run_dir / "checkpoints" / "best.ckpt"
        vae = VAEModule.load_from_checkpoint(path)
        vae.read_options = asdict(ReadOptions(cell, max_num_atoms, 60, 0.7))
        save_checkpoint(vae, path)

    return record


@pytest.mark.parametrize("command", ["eval_vae", "encode_vae"])
@pytest.mark.parametrize(
    "data", ["data=prototypes", "data=mp_20", "data=default data.data_dir=mine"]
)
def test_crystals_are_read_as_in_training_whatever_the_data(
    make_config, run_dir, trained_on, caplog, command, data
):
    """Even though the data configs set a cell, and the run folder may be gone."""
    trained_on("conventional", 12)
    for is_there in (True, False):
        if not is_there:
            (run_dir / "config.yaml").unlink()
        cfg = make_config(*data.split(), command=command)
        with caplog.at_level("INFO"):
            options = load_data(cfg).read_options
        assert options == ReadOptions("conventional", 12, 60, 0.7)
        assert load_data(cfg, load_vae(cfg)).read_options == options
        assert "Crystals are converted to their conventional cells, as in training" in caplog.text
        assert "data.max_num_atoms=12" in caplog.text
    more = ["data.max_num_atoms=30", "data.max_atomic_number=20", "data.min_distance=0.1"]
    options = load_data(make_config(*data.split(), *more, command=command)).read_options
    assert options == ReadOptions("conventional", 30, 20, 0.1)


def test_a_cell_that_one_says_wins_with_a_warning(make_config, trained_on, caplog):
    trained_on("conventional")
    data = load_data(make_config("data=prototypes", "data.cell=primitive"))
    assert data.read_options.cell == "primitive"
    assert "primitive cells, but the model was trained on conventional cells" in caplog.text
    caplog.clear()
    load_data(make_config("data=prototypes", "data.cell=conventional"))
    assert not caplog.records


def test_what_the_checkpoint_says_is_more_than_what_the_run_says(make_config, trained_on):
    trained_on("as_given")  # and the run, primitive
    data = load_data(make_config())
    assert (data.read_options.cell, data.data_dir) == ("as_given", Path("data/of the run"))
    assert load_vae(make_config()).read_options["cell"] == "as_given"


def test_an_old_checkpoint_has_the_cells_of_its_run_else_niggli(make_config, run_dir, caplog):
    cfg = make_config("data=prototypes")
    assert load_data(cfg).read_options == ReadOptions("primitive", 20)
    assert load_vae(cfg).read_options == asdict(ReadOptions("primitive", 20))
    for text in ("data: {cell: cubic}", "data: {max_num_atoms: many}", "data: 5", "data: ["):
        (run_dir / "config.yaml").write_text(text)
        assert load_vae(cfg).read_options is None
    (run_dir / "config.yaml").unlink()
    assert load_vae(cfg).read_options is None
    with caplog.at_level("INFO"):
        assert load_data(cfg).read_options == ReadOptions("niggli")
    assert "the checkpoint does not record which cells were used in training" in caplog.text


def test_a_known_set_is_that_of_the_run(make_config, run_dir):
    known = {**DATA, "source": "mp_20", "download": True}
    OmegaConf.save({"data": known}, run_dir / "config.yaml")
    data = load_data(make_config("data.base_url=/a/mirror"))
    assert (data.source, data.download, data.base_url) == ("mp_20", True, "/a/mirror")
    assert load_data(make_config("data.download=false")).download is False
    assert load_data(make_config("data.data_dir=other")).download is False
    data = load_data(make_config("data.data_dir=other", "data.download=true"))
    assert (data.source, data.download) == ("mp_20", True)


def test_ones_own_data_are_split_as_in_training(make_config, run_dir, tmp_path, monkeypatch):
    """Even though the run had paths relative to another folder."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    for i in range(20):
        crystal = Structure(Lattice.cubic(3.5 + i / 100), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
        write_structures(Path(f"mine/{i}.cif"), [crystal], ["x"])
    table = "".join(
        f"{i},{i}.cif,{'test' if i % 5 else 'train' if i else 'val'},\n" for i in range(20)
    )
    Path("splits.csv").write_text(f"id,file,split,group\n{table}")
    Path("gaps.csv").write_text("id,gap\n" + "".join(f"{i},{i}\n" for i in range(20)))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(
            "train_vae",
            overrides=[
                "data=structures", "data.data_dir=mine", "data.split_by=file",
                "data.split_file=splits.csv", "data.properties=[gap]",
                "data.property_file=gaps.csv", f"++paths.output_dir={run_dir}",
            ],
        )  # fmt: skip
    monkeypatch.setattr("lightning.Trainer.fit", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(cfg)
    monkeypatch.chdir(tmp_path)
    test = load_data(make_config()).dataset("test")
    assert test.y["gap"].int().tolist() == [int(id_) for id_ in test.ids]
    assert sorted(map(int, test.ids)) == [i for i in range(20) if i % 5]


def test_crystals_that_came_later_change_no_split(make_config, run_dir, tmp_path):
    def write(i):
        crystal = Structure(Lattice.cubic(3.5 + i / 100), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
        write_structures(tmp_path / "mine" / f"{i}.cif", [crystal], ["x"])

    for i in range(20):
        write(i)
    own = {
        "_target_": "src.data.DataModule", "data_dir": str(tmp_path / "mine"),
        "cache_dir": str(tmp_path / "cache"), "split_ratio": [2, 1, 1],
    }  # fmt: skip
    OmegaConf.save({"data": own}, run_dir / "config.yaml")
    trained_on = DataModule(own["data_dir"], cache_dir=own["cache_dir"], split_ratio=[2, 1, 1])
    trained_on.prepare_data()
    _keep_splits(trained_on, run_dir)
    again = load_data(make_config())
    assert again.dataset("test").ids == trained_on.dataset("test").ids
    assert again.splits_file == run_dir / "splits.csv"
    write(20)
    with pytest.raises(DataError, match=r"Only in the data: 1 crystal: 20 \(20\.cif\)\."):
        load_data(make_config()).dataset("test")
    assert len(load_data(make_config(f"data.data_dir={tmp_path}/mine")).dataset("test")) == 5


def test_other_data_need_no_run(make_config, run_dir, tmp_path):
    (run_dir / "config.yaml").unlink()
    data = load_data(make_config("data=prototypes"))
    assert data.data_dir == tmp_path / "data" / "prototypes"
    assert data.read_options.cell == "niggli"
    assert load_data(make_config("data=default", "data.data_dir=mine")).data_dir == Path("mine")


def test_a_checkpoint_outside_of_a_run_has_no_data(make_config, run_dir, tmp_path):
    alone = tmp_path / "downloads" / "best.ckpt"
    alone.parent.mkdir()
    alone.write_bytes((run_dir / "checkpoints" / "best.ckpt").read_bytes())
    for more in ([], ["data.data_dir=mine"]):
        with pytest.raises(DataError, match=r"best\.ckpt .* specify the data: data=prototypes, or"):
            load_data(make_config(f"ckpt_path={alone}", *more))


def test_a_link_leads_to_its_run(make_config, run_dir, tmp_path):
    (tmp_path / "latest.ckpt").symlink_to(run_dir / "checkpoints" / "best.ckpt")
    data = load_data(make_config(f"ckpt_path={tmp_path}/latest.ckpt"))
    assert data.data_dir == Path("data/of the run")


@pytest.mark.parametrize("target", ["os.system", "src.vae_module.VAEModule", "src.data.DataError"])
def test_a_config_cannot_name_what_is_no_data(make_config, run_dir, monkeypatch, target):
    """A run folder may come from anywhere, so nothing in it may be called without a check."""
    monkeypatch.setattr("os.system", pytest.fail)
    OmegaConf.save({"data": {**DATA, "_target_": target}}, run_dir / "config.yaml")
    with pytest.raises(ValueError, match=target.replace(".", r"\.")):
        load_data(make_config())


def test_a_config_of_another_kind_of_data_is_refused_before_it_is_imported(make_config, run_dir):
    target = "nowhere.to_be.Found"
    OmegaConf.save({"data": {**DATA, "_target_": target}}, run_dir / "config.yaml")
    with pytest.raises(ValueError, match="not among the allowed modules"):
        load_data(make_config())


@pytest.mark.parametrize(
    "text", ["", "seed: 0", "- data", "data: 5", "data: [1", "data: {data_dir: '${nowhere}'}"]
)
def test_a_file_that_is_no_config_of_a_run_is_named(make_config, run_dir, text):
    (run_dir / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml"):
        load_data(make_config())
