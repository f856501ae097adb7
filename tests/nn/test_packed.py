"""Products with a packed weight: against double precision, with and without oneDNN."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ppl_dgm.families import RBM
from ppl_dgm.nn.packed import WORTHWHILE, packed_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "transposed"), [(300, False), (300, True), (2, False)])
def test_products_are_those_of_a_linear_map(
    rows: int, transposed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(250, 200, dtype=dtype) if transposed else torch.randn(200, 250)
    weight = (weight.T if transposed else weight).to(dtype).requires_grad_()
    bias, x = torch.randn(200, dtype=dtype), torch.randn(rows, 250, dtype=dtype)
    assert (rows * weight.numel() >= WORTHWHILE) == (rows == 300)
    for offset in (bias, None):
        made = packed_linear(weight, offset, rows)(x)
        wanted = F.linear(x.double(), weight.double(), None if offset is None else bias.double())
        assert made.dtype == dtype
        assert not made.requires_grad
        error = (made - wanted).abs().max() / wanted.abs().max()
        assert error < 4 * torch.finfo(dtype).eps * 250**0.5


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_packed_gibbs_steps_are_plain_ones(visible) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    rbm = RBM(200, 100, visible)
    start = torch.rand(500, 200).round()
    torch.manual_seed(1)
    made = rbm.sample(500, 2, start, progress=False)
    torch.manual_seed(1)
    with torch.no_grad():
        wanted = rbm.parts.move(rbm.parts.move(start))
    # a bit differs where its probability is within rounding of its number: 1e-7 of 1e5
    assert ((made - wanted).abs() < 1e-5).float().mean() > 0.9999


def test_samples_follow_a_weight_written_in_place() -> None:
    torch.manual_seed(0)
    rbm = RBM(200, 200)
    rbm.sample(300, 1, progress=False)
    rbm.parts.weight.data.zero_()
    rbm.parts.units.bias.data.fill_(50.0)
    assert rbm.sample(300, 1, progress=False).all()
    rbm.parts.weight.data.fill_(-10.0)
    rbm.parts.hidden_bias.data.fill_(3000.0)
    assert not rbm.sample(300, 1, progress=False).any()


def test_a_parametrised_weight_is_the_one_that_counts() -> None:
    torch.manual_seed(0)
    plain, rbm, start = RBM(200, 200), RBM(200, 200), torch.rand(300, 200).round()
    plain.parts.weight.data.mul_(1e3)
    rbm.parts.weight.data.copy_(plain.parts.weight)
    spectral_norm(rbm.parts, "weight")
    draws = []
    for move in (
        partial(rbm.sample, 300, 1, progress=False),
        rbm.eval().parts.move,
        plain.parts.move,
    ):
        torch.manual_seed(1)
        with torch.no_grad():
            draws.append(move(start))
    assert (draws[0] == draws[1]).float().mean() > 0.9999
    assert (draws[0] == draws[2]).float().mean() < 0.9  # of the weight before it is normalised
