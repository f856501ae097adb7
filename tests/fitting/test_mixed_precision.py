"""Products in bfloat16; parameters, densities and evidence in full."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from ppl_dgm import Program, evidence, families, fit
from ppl_dgm.fitting.mixed_precision import NarrowProducts

X = (torch.arange(480).reshape(40, 12) % 5 < 2).float()


def fitted(**settings):
    torch.manual_seed(0)
    program = families.MADE(12, hidden=[16])
    found = fit(program, X, steps=25, optimizer=partial(SGD, lr=0.3), progress=False, **settings)
    return program, found.history["objective"]


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_differ_by_the_digits_of_products(compile) -> None:
    _, full = fitted(compile=False)
    program, narrow = fitted(compile=compile, autocast=torch.bfloat16)
    assert 1e-7 < (narrow - full).abs().max() < 0.02
    assert {p.dtype for p in program.parameters()} == {torch.float32}


@pytest.mark.slow
def test_captured_steps_are_the_eager_ones() -> None:
    _, eager = fitted(compile=False, autocast=torch.bfloat16)
    _, compiled = fitted(compile=True, autocast=torch.bfloat16)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_validation_and_evidence_keep_all_digits() -> None:
    program, _ = fitted(compile=False, autocast=torch.bfloat16)
    torch.manual_seed(0)
    again = families.MADE(12, hidden=[16])
    found = fit(
        again, X, steps=25, optimizer=partial(SGD, lr=0.3), progress=False, compile=False,
        autocast=torch.bfloat16, valid=X, valid_every=25,
    )  # fmt: skip
    exact = evidence.Exact()(program, X).total.item() / 40
    assert found.history["valid"][-1].item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(
    "product",
    [
        F.linear,
        lambda x, w: x @ w.T,
        lambda x, w: torch.einsum("ni,oi->no", x, w),
        lambda x, w: torch.einsum("ni,oi->no", [x, w]),
        lambda x, w: F.conv1d(x[..., None], w[..., None])[..., 0],
    ],
)
def test_products_are_narrow_and_return_wide(product) -> None:
    torch.manual_seed(1)
    x, w = torch.randn(5, 7), torch.randn(3, 7)
    with NarrowProducts(torch.bfloat16):
        found = product(x, w)
        total = x.sum()
    assert found.dtype == torch.float32
    assert 1e-4 < (found - x @ w.T).abs().max() < 0.1
    assert total == x.sum()


def test_sums_of_densities_keep_their_digits() -> None:
    """A log density of -4e4 nats, which bfloat16 rounds to 256."""
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    nn.init.constant_(net.bias, 0.69921875)  # a number of bfloat16

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=net(x[:, :1]).expand_as(x)).to_event(1), obs=x)

    found = fit(
        Program(model), torch.ones(4, 100_001), steps=1, progress=False, autocast=torch.bfloat16
    )
    expected = 100_001 * F.logsigmoid(torch.tensor(0.69921875).double()).item()
    assert found.history["objective"][0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("dtype", "message"), [(torch.float16, "underflow"), (None, "")])
def test_what_autocast_is_not_for(dtype, message) -> None:
    if dtype is not None:
        with pytest.raises(ValueError, match=message):
            fit(families.MADE(12), X, steps=1, progress=False, autocast=dtype)
    with pytest.raises(ValueError, match="float64"):
        fit(
            families.MADE(12).double(), X.double(), steps=1, progress=False, autocast=torch.bfloat16
        )


def test_a_checkpoint_of_other_digits_is_refused(tmp_path) -> None:
    fitted(checkpoint=tmp_path / "fit.pt", autocast=torch.bfloat16)
    with pytest.raises(ValueError, match="autocast"):
        fitted(checkpoint=tmp_path / "fit.pt")
