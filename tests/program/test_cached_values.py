"""Pyro's transforms hold their last values, which are not to be had at other parameters."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ppl_dgm import Program, evidence, fit

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
FLOWS: dict[str, Callable[[], nn.Module]] = {
    "spline": lambda: T.spline(2, count_bins=4),
    "spline coupling": lambda: T.spline_coupling(2, 1, hidden_dims=[4]),
    "affine autoregressive": lambda: T.affine_autoregressive(2, hidden_dims=[4]),
    "affine coupling": lambda: T.affine_coupling(2, [4]),
    "matrix exponential": lambda: T.matrix_exponential(2),
    "composed": lambda: T.ComposeTransformModule([T.affine_coupling(2, [4]), T.spline(2)]),
}


def density_of(flow: nn.Module, registered: bool) -> Program:
    """The density of a flow, which a function registers or a module owns."""

    def model(x: Tensor) -> None:
        if registered:
            pyro.module("flow", flow)
        base = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = flow

        def forward(self, x: Tensor) -> None:
            model(x)

    return Program(model if registered else Model())


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("registered", [True, False])
def test_full_batches_go_through_flows_again_and_again(name: str, registered: bool) -> None:
    """Two fits in a row at one tensor, as after an interruption, and the evidence at its end."""
    program = density_of(FLOWS[name](), registered)
    program.initialise(X)
    settings = {"optimizer": partial(torch.optim.Adam, lr=0.05), "progress": False}
    objective = fit(program, X, steps=8, compile=False, **settings).history["objective"]
    assert objective.diff().abs().min() > 0
    truth = evidence.Exact()(program, X.clone()).total.item() / len(X)
    resumed = fit(program, X, steps=1, compile=False, **settings).history["objective"]
    assert resumed.item() == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("name", sorted(FLOWS.keys() - {"affine autoregressive"}))
def test_densities_are_those_of_the_present_parameters(name: str) -> None:
    x, program = X.double(), density_of(FLOWS[name](), True)  # in double no copy is evaluated
    program.double()
    before = evidence.Exact()(program, x).total.item()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.1)
    after = evidence.Exact()(program, x).total.item()
    assert after != pytest.approx(before, abs=1e-6)
    assert after == pytest.approx(evidence.Exact()(program, x.clone()).total.item(), abs=1e-9)


def test_a_flow_that_both_halves_share_is_not_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyro asks for the density of a guide's draw when the model has run: it is held till then."""
    flow = T.affine_autoregressive(2, hidden_dims=[4])

    def half(x: Tensor, observe: bool) -> None:
        pyro.module("flow", flow)
        at = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", at.expand([len(x)]))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    program = Program(partial(half, observe=True), partial(half, observe=False)).initialise(X)
    monkeypatch.setattr(type(flow), "_inverse", None)
    losses = [Trace_ELBO().loss(program.model, program.guide, X) for _ in range(3)]
    assert len(set(losses)) == 3
