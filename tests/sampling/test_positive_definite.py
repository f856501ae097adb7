"""Positive definite latents: the transform against autodiff, evidence of Wishart priors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import SMC, BridgeSampling, Estimator, Laplace
from ppl_dgm.sampling.positive_definite import LogCholesky

FLOAT = torch.float64


def test_jacobian_and_inverse():
    transform, y = LogCholesky(), torch.randn(6, dtype=FLOAT)
    row, column = torch.tril_indices(3, 3)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[row, column], y)
    assert torch.allclose(jacobian.slogdet()[1], transform.log_abs_det_jacobian(y, transform(y)))
    points = torch.randn(4, 2, 6, dtype=FLOAT)
    assert torch.allclose(transform.inv(transform(points)), points)
    assert bool(transform.inv(-torch.eye(3)).isnan().all())


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # torch warns of every sample
@pytest.mark.parametrize(
    "estimator",
    [Laplace(), SMC(num_particles=200), BridgeSampling(num_chains=16)],
    ids=lambda estimator: estimator.name,
)
def test_precision_of_a_normal_with_a_wishart_prior(estimator: Estimator):
    x, df, zeros = torch.randn(4, 2, dtype=FLOAT), 8.0, torch.zeros(2, dtype=FLOAT)
    one = torch.eye(2, dtype=FLOAT)

    def model(x: Tensor) -> None:
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(df, dtype=FLOAT), one))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(zeros, precision_matrix=precision), obs=x)

    def parts(df: float, scale: Tensor) -> Tensor:
        return torch.mvlgamma(torch.tensor(df / 2, dtype=FLOAT), 2) + df / 2 * scale.logdet()

    after = parts(df + 4, torch.linalg.inv(one + x.T @ x))
    truth = after - parts(df, one) - 4 * math.log(math.pi)
    found = estimator(Program(model), x)
    assert abs(float(found.log_z - truth)) < 4 * float(found.std_error) < 0.3
