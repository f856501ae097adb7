"""Nested sampling.

The prior transform against quantiles, and evidences of cases where dynesty is installed.
"""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as stats
import torch
from evidence.case_programs import FLOAT, case
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import NestedSampling, nested
from ppl_dgm.evidence.nested import cube_dim, from_cube

dynesty = pytest.importorskip("dynesty")

PRIORS = {
    "normal": (dist.Normal(torch.tensor(1.0, dtype=FLOAT), 2.0), stats.norm(1, 2)),
    "gamma": (dist.Gamma(torch.tensor(2.0, dtype=FLOAT), 3.0), stats.gamma(2, scale=1 / 3)),
    "inverse gamma": (
        dist.InverseGamma(torch.tensor(2.0, dtype=FLOAT), 3.0),
        stats.invgamma(2, scale=3),
    ),
    "beta": (dist.Beta(torch.tensor(2.0, dtype=FLOAT), 3.0), stats.beta(2, 3)),
    "half cauchy": (dist.HalfCauchy(torch.tensor(2.0, dtype=FLOAT)), stats.halfcauchy(scale=2)),
    "log normal": (
        dist.LogNormal(torch.tensor(0.5, dtype=FLOAT), 0.5),
        stats.lognorm(0.5, scale=2.718281828459045**0.5),
    ),
    "student": (dist.StudentT(torch.tensor(3.0, dtype=FLOAT), 1.0, 2.0), stats.t(3, 1, 2)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_prior_transform_is_the_quantile_function(name):
    prior, reference = PRIORS[name]

    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    bound = Program(model).bind(torch.zeros((), dtype=FLOAT))
    for u in (0.05, 0.4, 0.9):
        value = from_cube(bound, torch.tensor([u]).numpy())["z"]
        assert value.dtype == FLOAT
        assert float(value) == pytest.approx(float(reference.ppf(u)), rel=1e-5)


def test_simplex_has_one_coordinate_fewer():
    def model(x: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0], dtype=FLOAT)))
        pyro.sample("x", dist.Normal(w[..., 0], 1.0), obs=x)

    bound = Program(model).bind(torch.zeros((), dtype=FLOAT))
    assert cube_dim(bound) == 2
    draws = torch.cat([from_cube(bound, u.numpy())["w"] for u in torch.rand(2000, 2, dtype=FLOAT)])
    assert torch.allclose(draws.sum(-1), torch.ones(2000, dtype=FLOAT))
    assert torch.allclose(draws.mean(0), torch.tensor([1.0, 2.0, 3.0], dtype=FLOAT) / 6, atol=0.02)


def test_latents_depend_on_those_before():
    known = case("eight_schools_posteriordb")
    values = from_cube(known.program().bind(*known.args), torch.full((10,), 0.5).numpy())
    assert torch.allclose(values["theta"], values["mu"].expand(1, 8))


def test_finds_a_conjugate_evidence():
    known = case("bs_betabinomial_tutorial")
    result = NestedSampling(num_live=40, remaining=0.1)(known.program(), *known.args)
    assert abs(float(result.log_z) - known.log_z) < 4 * float(result.std_error) + 0.1
    assert result.diagnostics["calls"] > 100


def test_too_few_calls_are_told():
    known = case("bs_std_normal_2d")
    assert not NestedSampling(num_live=20, max_calls=100)(known.program()).reliable


@pytest.mark.slow
def test_impossible_data_have_no_evidence():
    def model(x: Tensor) -> None:
        top = pyro.sample("top", dist.Uniform(torch.zeros((), dtype=FLOAT), 1.0))
        pyro.factor("below", torch.where(x < top, 0.0, -torch.inf))

    def half(x: Tensor) -> None:
        top = pyro.sample("top", dist.Uniform(torch.zeros((), dtype=FLOAT), 1.0))
        pyro.factor("below", torch.where(x < top, top, -torch.inf))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        never = NestedSampling(num_live=20)(Program(model), torch.tensor(2.0))
    assert float(never.log_z) == -math.inf
    assert not never.reliable
    assert len(repr(never)) < 250
    found = NestedSampling(num_live=100, remaining=0.1)(Program(half), torch.tensor(0.5))
    truth = math.log(math.e - math.exp(0.5))
    assert abs(float(found.log_z) - truth) < 4 * float(found.std_error) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynesty_gauss3d", "dynesty_shells_2", "dynesty_eggbox"])
def test_finds_its_own_cases(name):
    known = case(name)
    result = NestedSampling(num_live=500)(known.program())
    assert abs(float(result.log_z) - known.log_z) < 4 * float(result.std_error)


def test_what_does_not_fit_is_refused(monkeypatch):
    def local(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def stable(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.VonMises(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="one for each datum"):
        NestedSampling()(Program(local), torch.zeros(3))
    with pytest.raises(ValueError, match="no quantile function"):
        NestedSampling()(Program(stable), torch.zeros(()))
    with pytest.raises(ValueError, match="num_live"):
        NestedSampling(num_live=1)
    monkeypatch.setattr(nested, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install ppl-dgm\[nested\]"):
        NestedSampling()
