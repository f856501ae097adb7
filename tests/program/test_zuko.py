"""Flows of zuko as data sites and as guides, through Pyro's wrapper."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor

from ppl_dgm import Program, compare, evidence, fit
from ppl_dgm.compile import capture

zuko = pytest.importorskip("zuko")


def density(flow) -> Program:
    def model(x: Tensor | None = None) -> None:
        made = pyro.module("flow", flow)()
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", ZukoToPyro(made), obs=x)

    return Program(model)


def flow_named(name: str, **settings):
    torch.manual_seed(0)
    return getattr(zuko.flows, name)(2, 0, hidden_features=(8, 8), **settings)


def draws(mean: float = 0.0, scale: float = 1.0) -> Tensor:
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    return mean + scale * noise @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])


@pytest.mark.parametrize(
    "name", ["MAF", "NICE", *(pytest.param(n, marks=pytest.mark.slow) for n in ("NSF", "RealNVP"))]
)
def test_data_sites_are_fitted_scored_and_drawn(name: str) -> None:
    flow, x = flow_named(name), draws()
    program = density(flow)
    before = evidence.Exact()(program, x)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-2)  # noqa: E731
    fit(program, x, steps=30, optimizer=adam, progress=False, compile=False)
    after = evidence.Exact()(program, x)
    assert after.total > before.total + 10
    by_zuko = flow().log_prob(x).double()
    torch.testing.assert_close(after.log_z, by_zuko, rtol=1e-4, atol=1e-4)
    assert program.sample(5).shape == (5, 2)
    assert compare({"before": before, "after": after}).rows[0].name == "after"


@pytest.mark.parametrize("name", ["NICE", "RealNVP", "MAF", "NSF"])
def test_captured_densities_equal_eager_ones(name: str) -> None:
    """Couplings make indices of their masks at every call."""
    flow, x = flow_named(name), draws()
    captured = capture(lambda data: flow().log_prob(data), (x,))
    torch.testing.assert_close(captured(x), flow().log_prob(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NICE", "RealNVP"])
def test_compiled_fits_of_couplings_equal_eager_ones(name: str) -> None:
    x = draws()
    found = [
        fit(density(flow_named(name)), x, steps=5, progress=False, compile=mode)
        for mode in (True, False)
    ]
    compiled, eager = (torch.as_tensor(each.history["objective"]) for each in found)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_the_density_integrates_to_one() -> None:
    grid = torch.linspace(-8, 8, 161)
    points = torch.cartesian_prod(grid, grid)
    log_p = evidence.Exact()(density(flow_named("NSF")), points).log_z
    assert log_p.exp().sum().item() * 0.1**2 == pytest.approx(1.0, abs=5e-3)


def test_a_flow_as_guide_proposes() -> None:
    flow = zuko.flows.MAF(2, 3, transforms=1, hidden_features=(16,))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = torch.stack([z[..., 0], z[..., 1], z.sum(-1)], -1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        made = pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ZukoToPyro(made(x)))

    torch.manual_seed(2)
    x, program = torch.randn(20, 3), Program(model, guide)
    fit(program, x, steps=100, progress=False, compile=False)
    found = evidence.ImportanceSampling(4000)(program, x)
    loading = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    truth = dist.MultivariateNormal(torch.zeros(3), loading @ loading.T + torch.eye(3))
    assert bool(((found.log_z - truth.log_prob(x)).abs() < 4.5 * found.std_error + 1e-3).all())


def test_draws_that_lost_their_density_are_refused() -> None:
    """Inverses by bisection in [-10, 10], of data at 100."""
    flow = flow_named("NAF", transforms=1)
    far = density(flow)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-2)  # noqa: E731
    fit(far, draws(100.0, 30.0), steps=60, optimizer=adam, progress=False, compile=False)
    with pytest.raises(ValueError, match=r"draws of site 'x' do not have the density"):
        far.sample(4)


def test_guides_whose_inverse_fails_are_refused() -> None:
    flow = flow_named("GF")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(8)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", ZukoToPyro(pyro.module("flow", flow)()))

    with pytest.raises(ValueError, match=r"draws of site 'z'.*standardise|Standardise"):
        evidence.ImportanceSampling(100)(Program(model, guide), torch.zeros(2))


def test_a_flow_on_circles_must_state_its_support() -> None:
    """Its density is one of angles, and no density of numbers beyond."""
    with pytest.raises(ValueError, match="does not state its support"):
        evidence.Exact()(density(flow_named("NCSF")), draws())
