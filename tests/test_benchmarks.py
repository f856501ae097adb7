"""Gradients that a benchmark writes by hand are those of autograd."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_dgm.families import MADE

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def triangular(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module, its products in double in place of bfloat16."""
    monkeypatch.syspath_prepend(str(FOLDER))
    triangular = import_module("triangular")

    monkeypatch.setattr(triangular, "HALF", torch.float64)
    yield triangular
    sys.modules.pop("triangular", None)


@pytest.mark.parametrize(("dims", "hidden"), [(12, 40), (30, 11)])
def test_the_gradient_of_a_triangular_made_is_that_of_autograd(
    triangular: Any, dims: int, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = (torch.rand(7, dims) < 0.4).double()
    made: Any = MADE(dims, [hidden]).double()
    degrees = made.model.fn.net.degrees[0][1]
    net = triangular.TriangularMADE(degrees, x.mean(0).clamp(0.1, 0.9)).double()
    net.corners = [tuple(mask.double() for mask in pair) for pair in net.corners]
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # sums stay double
    net.differentiate(x)
    plain = made.model.fn.net
    net.write(plain)
    loss = -made.model.fn.distribution().log_prob(x).mean()
    first, last = plain.layers
    leaves = [first.weight, last.weight, first.bias, last.bias]
    into, out, shifts, biases = torch.autograd.grad(loss, leaves)
    pairs = [(net.shifts.grad, shifts), (net.biases.grad, biases)]
    for units, (low, high), column, row in net.blocks():
        pairs += [(column.grad, into[units, :high]), (row.grad, out[low:, units])]
        assert not into[units, high:].any()
        assert not out[:low, units].any()
    for by_hand, by_autograd in pairs:
        assert torch.allclose(by_hand, by_autograd, rtol=1e-9, atol=1e-12)
    assert into.abs().sum() > 0
