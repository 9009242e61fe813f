"""Compare imported Chemeleon2 checkpoints with what Chemeleon2's own program computed from them."""

import contextlib
import importlib.util
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.data import CrystalBatch
from src.utils.checkpoints import CheckpointError
from src.vae_module import VAEModule
from src.vae_module.import_chemeleon2 import import_chemeleon2, read_foreign_checkpoint

ROOT = Path(__file__).resolve().parents[2]
COMPAT = ROOT.parent / "shared" / "compat"


def load_script():
    spec = importlib.util.spec_from_file_location("script", ROOT / "scripts/import_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["dng", "csp"])
def imported(request, tmp_path_factory):
    """The module that the script wrote, the batch, and the output of Chemeleon2's program."""
    folder = COMPAT / request.param
    if not folder.is_dir():
        pytest.skip(f"the checkpoints of another program are not at {COMPAT}")
    out = tmp_path_factory.mktemp("import") / "vae.ckpt"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = load_script().main([str(folder / "chemeleon2_vae.ckpt"), str(out)])
    assert code == 0
    assert request.param.upper() in said.getvalue()
    expected = load_file(folder / "expected.safetensors")
    names = ("in_atom_types", "in_frac_coords", "in_lattices", "in_num_atoms")
    batch = CrystalBatch.from_tensors(*(expected[name] for name in names))
    return VAEModule.load_from_checkpoint(out), batch, expected


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@torch.no_grad()
def test_it_computes_what_its_own_program_did(imported):
    vae, batch, expected = imported
    encoded = vae.encode(batch)
    close(vae.encoder(batch), expected["hidden"])
    for name in ("mean", "logvar"):
        close(getattr(encoded["posterior"], name), expected[name])
    close(encoded["posterior"].kl(), expected["kl"])
    prediction = vae._predict(encoded)
    close(prediction.lengths_scaled, expected["out_lengths"])
    close(prediction.angles_radians, expected["out_angles"])
    close(prediction.coords, expected["out_frac_coords"])
    out = vae.decode(encoded)
    if vae.atom_type_predict:
        close(out["atom_types"], expected["out_atom_types"])
    close(out["lengths"], expected["recon_lengths"])
    close(out["angles"], expected["recon_angles"])
    close(out["lattices"], expected["recon_lattices"])
    recon = vae.reconstruct(out, batch)
    assert torch.equal(recon.atom_types, expected["recon_atom_types"])
    difference = recon.frac_coords - expected["recon_frac_coords"]
    assert (difference - difference.round()).abs().max() < 1e-5


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_the_file_is_executed(tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"encoder": Bomb(trace)}}, path)
    with pytest.raises(CheckpointError, match=r"hostile\.ckpt"):
        import_chemeleon2(path)
    read_foreign_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert trace.exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        import_chemeleon2(tmp_path / "nowhere")
    text = tmp_path / "text.ckpt"
    text.write_text("no zip file")
    with pytest.raises(CheckpointError, match=r"text\.ckpt"):
        import_chemeleon2(text)
    for content in ([1, 2], {"state_dict": {"weight": 1}}):
        path = tmp_path / "odd.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content))
        with pytest.raises(CheckpointError, match=r"odd\.ckpt"):
            import_chemeleon2(path)
