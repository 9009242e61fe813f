"""`scripts/shrink_checkpoint.py`."""

import pytest
import torch

from scripts.shrink_checkpoint import main, shrink
from src.ldm_module import LDMModule
from src.utils.checkpoints import load_checkpoint
from src.utils.errors import UserError
from tests.ldm_module.conftest import COMPOSITIONS, make_ldm
from tests.test_notebooks import save_checkpoint


def test_a_model_is_nearly_the_same_and_half_as_large(tmp_path):
    ldm = make_ldm(compositions=COMPOSITIONS)
    path, small = tmp_path / "ldm.ckpt", tmp_path / "small.ckpt"
    save_checkpoint(ldm, path)
    main([str(path), str(small), "--exact", "vae"])
    again = LDMModule.load_from_checkpoint(small)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for name, weight in ldm.state_dict().items():
        other = again.state_dict()[name]
        if weight.ndim < 2 or name.startswith("vae."):
            assert torch.equal(weight, other), name
        else:
            torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-6)
            assert name.endswith("nothing") or not torch.equal(weight, other) or not weight.any()
    assert small.stat().st_size < path.stat().st_size
    with pytest.raises(SystemExit):
        main([str(path), str(small)])


def test_a_part_that_is_not_there(tmp_path):
    path = tmp_path / "ldm.ckpt"
    save_checkpoint(make_ldm(), path)
    with pytest.raises(UserError, match="--exact encoder"):
        shrink(load_checkpoint(path), ["encoder"])
