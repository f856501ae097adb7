"""Draws follow their densities, or an alarm is raised."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions.transforms import StickBreakingTransform

from ppl_dgm import Program
from ppl_dgm.evidence import SMC, AdaptiveImportanceSampling, PriorSampling
from ppl_dgm.sampling.draws import APART, stein_distance
from ppl_dgm.sampling.simplex import LogStickBreaking

FLOAT = torch.float64


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=FLOAT)


class Shifted(dist.Gamma):
    """A distribution whose sampler and density differ, by a tenth of a standard deviation."""

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape) * 1.15


class TooNarrow(dist.MultivariateStudentT):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return 0.8 * super().rsample(sample_shape)


RIGHT = [
    dist.Gamma(number(2.0), number(1.0)),
    dist.Gamma(number(0.1), number(1.0)),
    dist.Beta(number(0.5), number(0.5)),
    dist.Dirichlet(torch.full((5,), 0.3, dtype=FLOAT)),
    dist.StudentT(number(0.5), number(0.0), number(1.0)),
    dist.InverseGamma(number(1.0), number(1.0)),
    dist.VonMises(number(0.0), number(0.3)),
    dist.LKJCholesky(2, number(2.0)),
    dist.AsymmetricLaplace(number(0.0), number(1.0), number(2.0)),
    dist.Gamma(torch.linspace(0.5, 9, 30, dtype=FLOAT), number(1.0)),
]
WRONG = [
    Shifted(number(2.0), number(1.0)),
    TooNarrow(number(4.0), torch.zeros(2, dtype=FLOAT), torch.eye(2, dtype=FLOAT)),
    dist.LKJCholesky(3, number(2.0)),  # torch's own sampler
    dist.Gamma(number(1e-4), number(1e-4)),
    dist.Gamma(number(1e-3), number(1.0)),
    dist.Beta(number(0.01), number(0.01)),
    dist.Dirichlet(torch.full((3,), 1e-3, dtype=FLOAT)),
]


@pytest.mark.parametrize("fn", RIGHT, ids=lambda fn: type(fn).__name__)
def test_right_draws_pass(fn):
    for seed in range(3):
        torch.manual_seed(seed)
        assert stein_distance(fn) < APART


@pytest.mark.parametrize("fn", WRONG, ids=lambda fn: type(fn).__name__)
def test_wrong_draws_are_caught(fn):
    for seed in range(3):
        torch.manual_seed(seed)
        assert stein_distance(fn) > APART


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_correlation_matrices_have_their_moments(dim):
    """E r^2 = 1 / (2 eta + dim - 1) of every correlation, under LKJ(eta)."""

    def model(x: Tensor) -> None:
        factor = pyro.sample("factor", dist.LKJCholesky(dim, number(2.0)))
        pyro.sample("x", dist.Normal(factor[..., 1, 0], 1.0), obs=x)

    torch.manual_seed(0)
    factor = Program(model).bind(number(0.0)).draw_prior(40_000).values["factor"]
    squares = (factor @ factor.mT).square()
    off = squares.mean(0)[torch.ones(dim, dim).tril(-1).bool()]
    error = squares.std(0).max() / 200
    assert bool(((off - 1 / (dim + 3)).abs() < 4.5 * error).all())
    assert torch.allclose(factor.square().sum(-1), torch.ones((), dtype=FLOAT))


def dirichlet(concentration: float):
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.full((3,), concentration)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    return Program(model)


@pytest.mark.parametrize("estimator", [PriorSampling(10_000), SMC(50, 2)])
def test_estimators_that_rely_on_wrong_draws_say_so(estimator):
    found = estimator(dirichlet(1e-3), torch.tensor([0, 0, 1, 2, 0]))
    assert any("do not follow" in warning for warning in found.warnings)


def test_mass_at_the_edge_of_the_simplex_counts():
    """Five times category 0 under Dirichlet(.1, .1, .1): torch's stick breaking gives -1.478."""
    truth = sum((torch.tensor(0.1 + k) / torch.tensor(0.3 + k)).log().item() for k in range(5))
    settings = AdaptiveImportanceSampling(num_particles=100_000, num_chains=64)
    found = settings(dirichlet(0.1), torch.zeros(5).long())
    assert float((found.log_z - truth).abs()) < 4 * float(found.std_error) < 0.008


def test_stick_breaking_is_torchs_with_more_digits():
    y = torch.randn(20, 4, dtype=FLOAT, generator=torch.Generator().manual_seed(0))
    ours, theirs = LogStickBreaking(), StickBreakingTransform()
    value = ours(y)
    assert torch.allclose(value, theirs(y), rtol=1e-12)
    jacobian = ours.log_abs_det_jacobian(y, value)
    assert torch.allclose(jacobian, theirs.log_abs_det_jacobian(y, theirs(y)))
    assert torch.allclose(ours.inv(ours(100 * y)), 100 * y)
