"""In half precision on a CPU, products get few different numbers of rows."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.nn.rows import MULTIPLE, add_rows, drop_rows, num_spare_rows
from src.nn.transformer import PackedTransformer, Packing


class Rows(TorchDispatchMode):
    """Records the numbers of rows in products of matrices in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_product = function in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        if is_product and args[-2].dtype == torch.bfloat16:
            self.found.add(len(args[-2]))
        return function(*args, **(kwargs or {}))


def test_spare_rows_come_only_in_half_precision_and_can_be_dropped():
    x = torch.randn(70, 3)
    assert num_spare_rows(x) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert num_spare_rows(x) == 2 * MULTIPLE - 70
        assert num_spare_rows(x[:MULTIPLE]) == 0
    longer = add_rows(x, 5)
    assert longer.shape == (75, 3)
    assert not longer[70:].any()
    assert torch.equal(drop_rows(longer, 5), x)
    assert add_rows(x, 0) is drop_rows(x, 0) is x


@pytest.mark.parametrize("lengths", [[3, 20, 1, 7], [5, 5, 5]], ids=["ragged", "full"])
def test_products_have_rounded_rows_and_the_result_does_not_change(lengths, monkeypatch):
    torch.manual_seed(0)
    network = PackedTransformer(32, 4, 2, dim_feedforward=48)
    num = torch.tensor(lengths)
    packing = Packing(num, torch.arange(len(num)).repeat_interleave(num), max(lengths))
    x, weight = torch.randn(2, sum(lengths), 32)

    def run() -> tuple[torch.Tensor, list[torch.Tensor], set[int]]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), Rows() as rows:
            out = network(x, packing)
        (out * weight).sum().backward()
        return out.detach(), [p.grad.clone() for p in network.parameters()], rows.found

    out, grads, rows = run()
    assert rows == {MULTIPLE}
    monkeypatch.setattr("src.nn.transformer.num_spare_rows", lambda x: 0)
    expected, expected_grads, rows = run()
    assert rows == {sum(lengths)}
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
    for grad, other in zip(grads, expected_grads, strict=True):
        assert (grad - other).norm() <= 0.03 * other.norm() + 1e-4
