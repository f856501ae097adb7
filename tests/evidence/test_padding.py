"""Series of different lengths, padded under masks.

Every estimator has the evidence of the series as they are.
"""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import (
    AIS,
    SMC,
    BridgeSampling,
    Exact,
    ImportanceSampling,
    Laplace,
    ThermodynamicIntegration,
)
from ppl_dgm.objectives import ELBO

LENGTHS = torch.tensor([3, 1, 2, 3])
SERIES = torch.tensor([[0.4, 1.0, -0.3], [1.5, 0.0, 0.0], [-0.2, 0.9, 0.0], [-1.0, -1.2, -2.5]])


def walk(x: Tensor, lengths: Tensor) -> None:
    """A Gaussian random walk seen with noise."""
    with pyro.plate("data", len(x)):
        z = torch.zeros(())
        for t in range(3):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x[:, t])


def proposal(x: Tensor, lengths: Tensor, masked: bool) -> None:
    with pyro.plate("data", len(x)):
        for t in range(3):
            with poutine.mask(mask=t < lengths if masked else True):
                pyro.sample(f"z{t}", dist.Normal(0.8 * x[:, t], 1.5))


def log_evidence() -> Tensor:
    steps = torch.arange(1.0, 4.0)
    covariance = torch.minimum(steps[:, None], steps) + 0.25 * torch.eye(3)
    each = [
        dist.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(x[:n])
        for x, n in zip(SERIES, LENGTHS.tolist(), strict=True)
    ]
    return torch.stack(each).double()


def program(guide: str) -> Program:
    if guide == "none":
        return Program(walk, site="x0")
    if guide == "AutoNormal":
        return Program(walk, AutoNormal(walk, init_scale=1.5), site="x0")
    return Program(walk, lambda x, lengths: proposal(x, lengths, guide == "masked"), site="x0")


@pytest.mark.parametrize("estimator", [Exact(), Laplace(num_particles=0)])
def test_closed_forms(estimator) -> None:
    result = estimator(program("none"), SERIES, LENGTHS, seed=0)
    torch.testing.assert_close(result.log_z, log_evidence(), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("guide", ["none", "masked", "unmasked", "AutoNormal"])
@pytest.mark.parametrize(
    "estimator",
    [
        ImportanceSampling(num_particles=20_000),
        AIS(num_temperatures=60, num_chains=64),
        SMC(num_particles=600),
        pytest.param(BridgeSampling(num_draws=400, num_leapfrog=5), marks=pytest.mark.slow),
        pytest.param(ThermodynamicIntegration(num_draws=200), marks=pytest.mark.slow),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimates(estimator, guide: str) -> None:
    result = estimator(program(guide), SERIES, LENGTHS, seed=1)
    assert bool(((result.log_z - log_evidence()).abs() < 4.5 * result.std_error + 1e-4).all())
    assert result.total_std_error < 0.3


@pytest.mark.parametrize("guide", ["masked", "unmasked", "AutoNormal"])
def test_bounds_stay_below(guide: str) -> None:
    """Where the guide leaves out the mask, padding costs its divergence from the prior.

    It never pays.
    """
    fitted = program(guide)
    fitted.initialise(SERIES, LENGTHS)
    bound = fitted.bind(SERIES, LENGTHS)
    with torch.no_grad():
        elbo = ELBO(num_particles=4000).value(bound)
    assert bool((elbo < log_evidence() + 0.01).all())
