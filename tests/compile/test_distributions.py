"""Draws, log densities and gradients of all of Pyro's distributions in a graph.

They are those of the distribution as it is.
"""

import zlib
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm.compile import Backend, CaptureError, capture
from ppl_dgm.compile.inductor.backend import compile_captured

POSITIVE = torch.tensor([0.5, 1.2, 2.0])
REAL = torch.tensor([-0.3, 0.4, 1.0])
SIMPLEX = torch.tensor([0.2, 0.3, 0.5])
UNIT = torch.tensor([0.2, 0.5, 0.7])
COVARIANCE = torch.eye(3) + 0.2
CHOLESKY = torch.linalg.cholesky(COVARIANCE)
FACTOR = torch.tensor([[0.1, 0.4], [-0.3, 0.2], [0.5, -0.2]])
TEN, FIVE, FEW = torch.tensor(10.0), torch.tensor(5.0), torch.tensor(0.3)


def unit_normal(size: int) -> Any:
    return dist.Normal(0.0, 1.0).expand([size]).to_event(1)


DISTRIBUTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "AsymmetricLaplace": (dist.AsymmetricLaplace, (REAL, POSITIVE, POSITIVE + 0.1)),
    "Bernoulli": (dist.Bernoulli, (UNIT,)),
    "BernoulliLogits": (lambda logits: dist.Bernoulli(logits=logits), (REAL,)),
    "Beta": (dist.Beta, (POSITIVE, POSITIVE + 1)),
    "BetaBinomial": (lambda a, b: dist.BetaBinomial(a, b, TEN), (POSITIVE, POSITIVE + 1)),
    "Binomial": (lambda probs: dist.Binomial(TEN, probs), (UNIT,)),
    "Categorical": (dist.Categorical, (SIMPLEX,)),
    "CategoricalLogits": (lambda logits: dist.Categorical(logits=logits), (REAL,)),
    "Cauchy": (dist.Cauchy, (REAL, POSITIVE)),
    "Chi2": (dist.Chi2, (POSITIVE + 1,)),
    "ContinuousBernoulli": (dist.ContinuousBernoulli, (UNIT,)),
    "Delta": (dist.Delta, (REAL,)),
    "Dirichlet": (dist.Dirichlet, (POSITIVE,)),
    "DirichletMultinomial": (lambda a: dist.DirichletMultinomial(a, torch.tensor(10)), (POSITIVE,)),
    "Exponential": (dist.Exponential, (POSITIVE,)),
    "FisherSnedecor": (dist.FisherSnedecor, (POSITIVE + 3, POSITIVE + 4)),
    "Gamma": (dist.Gamma, (POSITIVE, POSITIVE + 1)),
    "GammaPoisson": (dist.GammaPoisson, (POSITIVE, POSITIVE + 1)),
    "GaussianHMM": (
        lambda scale: dist.GaussianHMM(
            unit_normal(2),
            torch.eye(2) * scale[0],
            unit_normal(2),
            torch.eye(2),
            unit_normal(2),
            duration=2,
        ),
        (POSITIVE,),
    ),
    "Geometric": (dist.Geometric, (UNIT,)),
    "Gumbel": (dist.Gumbel, (REAL, POSITIVE)),
    "HalfCauchy": (dist.HalfCauchy, (POSITIVE,)),
    "HalfNormal": (dist.HalfNormal, (POSITIVE,)),
    "InverseGamma": (dist.InverseGamma, (POSITIVE + 2, POSITIVE)),
    "Kumaraswamy": (dist.Kumaraswamy, (POSITIVE, POSITIVE + 1)),
    "LKJCholesky": (lambda c: dist.LKJCholesky(3, c), (torch.tensor(1.5),)),
    "Laplace": (dist.Laplace, (REAL, POSITIVE)),
    "LogNormal": (dist.LogNormal, (REAL, POSITIVE)),
    "LogNormalNegativeBinomial": (
        lambda logits: dist.LogNormalNegativeBinomial(FIVE, logits, FEW),
        (REAL,),
    ),
    "Logistic": (dist.Logistic, (REAL, POSITIVE)),
    "LogisticNormal": (dist.LogisticNormal, (REAL, POSITIVE)),
    "LowRankMultivariateNormal": (dist.LowRankMultivariateNormal, (REAL, FACTOR, POSITIVE)),
    "MaskedMixture": (
        lambda a, b: dist.MaskedMixture(
            torch.tensor([True, False, True]), dist.Normal(a, 1.0), dist.Normal(b, 2.0)
        ),
        (REAL, REAL + 1),
    ),
    "MixtureSameFamily": (
        lambda p, loc: dist.MixtureSameFamily(dist.Categorical(p), dist.Normal(loc, 1.0)),
        (SIMPLEX, REAL),
    ),
    "Multinomial": (lambda probs: dist.Multinomial(10, probs), (SIMPLEX,)),
    "MultivariateNormal": (
        lambda loc, chol: dist.MultivariateNormal(loc, scale_tril=chol),
        (REAL, CHOLESKY),
    ),
    "MultivariateNormalCovariance": (dist.MultivariateNormal, (REAL, COVARIANCE)),
    "MultivariateStudentT": (
        lambda loc, chol: dist.MultivariateStudentT(FIVE, loc, chol),
        (REAL, CHOLESKY),
    ),
    "NegativeBinomial": (lambda probs: dist.NegativeBinomial(FIVE, probs), (UNIT,)),
    "Normal": (dist.Normal, (REAL, POSITIVE)),
    "OneHotCategorical": (dist.OneHotCategorical, (SIMPLEX,)),
    "OneHotCategoricalLogits": (lambda logits: dist.OneHotCategorical(logits=logits), (REAL,)),
    "OrderedLogistic": (
        lambda eta: dist.OrderedLogistic(eta, torch.tensor([-1.0, 0.0, 1.0])),
        (REAL,),
    ),
    "Pareto": (dist.Pareto, (POSITIVE, POSITIVE + 1)),
    "Poisson": (dist.Poisson, (POSITIVE,)),
    "RelaxedBernoulli": (lambda probs: dist.RelaxedBernoulli(FEW, probs), (UNIT,)),
    "RelaxedBernoulliStraightThrough": (
        lambda probs: dist.RelaxedBernoulliStraightThrough(FEW, probs),
        (UNIT,),
    ),
    "RelaxedOneHotCategorical": (
        lambda probs: dist.RelaxedOneHotCategorical(FEW, probs),
        (SIMPLEX,),
    ),
    "RelaxedOneHotStraightThrough": (
        lambda probs: dist.RelaxedOneHotCategoricalStraightThrough(FEW, probs),
        (SIMPLEX,),
    ),
    "SkewLogistic": (dist.SkewLogistic, (REAL, POSITIVE)),
    "SoftLaplace": (dist.SoftLaplace, (REAL, POSITIVE)),
    "StudentT": (dist.StudentT, (POSITIVE + 3, REAL, POSITIVE)),
    "TransformedDistribution": (
        lambda loc, scale: dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0), [dist.transforms.AffineTransform(loc, scale)]
        ),
        (REAL, POSITIVE),
    ),
    "TruncatedPolyaGamma": (dist.TruncatedPolyaGamma, (torch.ones(3),)),
    "Uniform": (lambda width: dist.Uniform(REAL - 3, REAL + width), (POSITIVE,)),
    "VonMises3D": (dist.VonMises3D, (REAL,)),
    "Weibull": (dist.Weibull, (POSITIVE, POSITIVE + 1)),
    "ZeroInflatedNegativeBinomial": (
        lambda probs: dist.ZeroInflatedNegativeBinomial(FIVE, probs=probs, gate=FEW),
        (UNIT,),
    ),
    "ZeroInflatedPoisson": (lambda rate: dist.ZeroInflatedPoisson(rate, gate=FEW), (POSITIVE,)),
}
DENSITY_ONLY = {  # no sampler
    "VonMises3D": torch.tensor([0.0, 0.6, 0.8]),
    "LogNormalNegativeBinomial": torch.tensor([0.0, 2.0, 7.0]),
}


def run(name: str, *parameters: Tensor) -> list[Tensor]:
    make, _ = DISTRIBUTIONS[name]
    parameters = tuple(parameter.detach().requires_grad_() for parameter in parameters)
    with torch.enable_grad():
        distribution = make(*parameters)
        drawn = DENSITY_ONLY[name] if name in DENSITY_ONLY else distribution()
        log_prob = distribution.log_prob(drawn).sum()
        target = log_prob + 0.1 * drawn.float().sum()
        found = (
            torch.autograd.grad(target, parameters, allow_unused=True)
            if target.requires_grad
            else ()
        )
    return [
        drawn.detach(),
        log_prob.detach(),
        *(gradient for gradient in found if gradient is not None),
    ]


def check(name: str, backend: Backend) -> None:
    _, parameters = DISTRIBUTIONS[name]
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    expected = run(name, *parameters)
    compiled = compile_captured(
        capture(lambda *values: run(name, *values), parameters), backend=backend
    )
    torch.manual_seed(seed)
    first = [output.clone() for output in compiled(*parameters)]
    torch.testing.assert_close(first, expected, rtol=2e-4, atol=2e-5)
    if expected[0].is_floating_point() and name not in {"Delta", *DENSITY_ONLY}:
        repeated = [compiled(*parameters)[0].clone() for _ in range(8)]
        assert any(not torch.equal(first[0], again) for again in repeated), (
            "the same draw at every call"
        )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_graph(name: str) -> None:
    check(name, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_compiled(name: str) -> None:
    check(name, "inductor")


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.ProjectedNormal(REAL),
        lambda: dist.Stable(torch.tensor(1.5), torch.tensor(0.0)),
        lambda: dist.VonMises(REAL, POSITIVE),
    ],
    ids=["ProjectedNormal", "Stable", "VonMises"],
)
def test_samplers_that_read_values_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(CaptureError, match="reads a tensor's value on the host"):
        capture(make(), ())
