"""NADE's recurrence gives what products by blocks give, to any order of gradients, and no more."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import jacobian
from torch.autograd.graph import saved_tensors_hooks

from ppl_dgm import fit
from ppl_dgm.conditionals.likelihoods import MixtureDensity
from ppl_dgm.evidence import Exact
from ppl_dgm.families import NADE
from ppl_dgm.nn import nade_recurrence
from ppl_dgm.nn.nade import WIDE, NADENet
from ppl_dgm.nn.nade_recurrence import PART, by_blocks, recur

DIMS = 40
GROUPED = [[3, 1], 0, 2, *range(10, DIMS), [9, 8, 7, 6, 5, 4]]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rectified": {"activation": nn.ReLU},
    "grouped": {"order": GROUPED},
    "three parameters": {"num_outputs_per_dim": 3},
    "given a context": {"num_context": 2},
    "several orders": {"num_orders": 3, "seed": 1},
    "told what it knows": {"all_orders": True, "order": GROUPED, "num_outputs_per_dim": 2},
}


def wild(**settings: Any) -> NADENet:
    """A net far from its start, in double."""
    torch.manual_seed(0)
    net = NADENet(DIMS, WIDE, **settings).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def given(net: NADENet, rows: int) -> tuple[Tensor, ...]:
    """Data, with contexts if the net takes them."""
    sizes = [DIMS, *([net.num_context] if net.num_context else [])]
    return tuple(torch.randn(rows, size).double().requires_grad_() for size in sizes)


@pytest.mark.parametrize("rows", [1, PART + 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_blocks(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = wild(**KINDS[kind])
    data, leaves = given(net, rows), [*net.parameters()]
    member: Any = net.draw_member() if net.all_orders else net.num_orders - 1
    found, slopes = [], None
    for recurs in (True, False):
        with monkeypatch.context() as patch:
            if recurs:
                patch.setattr("ppl_dgm.nn.nade.by_blocks", None)
            else:
                patch.setattr(NADENet, "recurs", lambda *_: False)
                patch.setattr("ppl_dgm.nn.nade.recur", None)
            params = net(*data, member=member)
        slopes = torch.randn_like(params) if slopes is None else slopes
        found.append([params, *torch.autograd.grad(params, [*data, *leaves], slopes)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_large_data_are_divided_as_they_round_alike_in_parts_and_whole() -> None:
    """Blocks for few data, the recurrence for many, were other densities in the part."""
    torch.manual_seed(1)
    x = 5e3 * torch.randn(300, DIMS).cumsum(1)
    program = NADE(DIMS, WIDE, MixtureDensity(5, "logistic"), activation=nn.ReLU)
    fit(program, x, steps=1, batch_size=64, progress=False)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_gradients_of_gradients(relu: bool, keep: bool) -> None:
    torch.manual_seed(2)
    shapes = ((4, 2), (4, 3), (4, 3), (2, 3), (4, 2, 3))
    tensors = [torch.randn(shape).double().requires_grad_() for shape in shapes]

    def params(*tensors: Tensor) -> Tensor:
        return recur(*tensors, [1, 2, 1], relu, keep)[0]

    assert gradcheck(params, tensors)
    assert gradgradcheck(params, tensors)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_functional_transforms_autocast_and_odd_units_go_by_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = wild()
    x = torch.randn(3, DIMS).double()
    expected = torch.stack([jacobian(net, each) for each in x])
    monkeypatch.setattr("ppl_dgm.nn.nade.recur", None)
    assert torch.allclose(torch.func.vmap(torch.func.jacfwd(net))(x), expected)
    half = net.float()
    with torch.autocast("cpu", torch.bfloat16):
        half(x.float())
    wild(activation=nn.Tanh)(x)
    assert half.bfloat16()(x.bfloat16()).dtype is torch.bfloat16


def test_the_gradient_keeps_the_square_root_of_the_sums() -> None:
    net, rows, kept = wild(), 200, []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        net(torch.randn(rows, DIMS).double())
    assert max(kept) == nade_recurrence.num_kept([1] * DIMS) * rows * WIDE == 7 * rows * WIDE


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_fits_in_minibatches_are_those_of_blocks(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks of the program and the graph see one operation."""
    torch.manual_seed(3)
    x = (torch.rand(300, DIMS) < 0.3).float()
    found = []
    for recurs in (True, False):
        with monkeypatch.context() as patch:
            if not recurs:
                patch.setattr(NADENet, "recurs", lambda *_: False)
            torch.manual_seed(4)
            program = NADE(DIMS, WIDE, orders=2)
            rate = partial(torch.optim.Adam, lr=1e-2)
            settings: Any = {"steps": 8, "batch_size": 100, "progress": False, "seed": 0}
            fit(program, x, optimizer=rate, compile=compiled and recurs, **settings)
            found.append(Exact()(program.eval(), x).log_z)
    assert torch.allclose(*found, atol=2e-4)


def test_blocks_of_groups_longer_than_a_block() -> None:
    torch.manual_seed(5)
    x, columns, start = torch.randn(2, 50), torch.randn(50, 3), torch.randn(2, 3)
    sizes, rows = [1, 40, 9], torch.randn(50, 1, 3)
    steps = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    blocks = by_blocks(x, columns, None, start, rows, steps, sizes, torch.sigmoid)
    params, _ = recur(x.T, columns, None, start, rows, sizes, False, True)
    assert torch.allclose(blocks, params.transpose(0, 1), atol=1e-5)
