"""Few weighted rows in place of many data."""

from dataclasses import replace
from math import lgamma

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, evidence

N = 2000


def coins(rng_shape=(N,), p=0.3):
    return (torch.rand(*rng_shape) < p).float()


def univariate(likelihood):
    def model(x):
        rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(rate), obs=x)

    return model


def regression(y, c):
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        logits = b[..., :1] + b[..., 1:2] * c + b[..., 2:] * c**2
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def pixels(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p.unsqueeze(-2)).to_event(1), obs=x)


def masked(x, seen):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def with_a_site_outside(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    pyro.sample("n", dist.Binomial(10, p), obs=torch.tensor(3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def counts(mean=3.0):
    return torch.poisson(torch.full((N,), mean))


SUMS = {
    "coins": lambda: (univariate(dist.Bernoulli), coins(), 2),
    "booleans": lambda: (univariate(dist.Bernoulli), coins().bool(), 2),
    "counts": lambda: (univariate(lambda r: dist.Poisson(5 * r)), counts(), 20),
    "bytes": lambda: (univariate(lambda r: dist.Poisson(5 * r)), counts().to(torch.uint8), 20),
    "doubles": lambda: (univariate(lambda r: dist.Normal(r, 1.0)), counts().double(), 20),
    "out of support": lambda: (
        univariate(lambda r: dist.Uniform(-1.0, 3 + 9 * r)),
        counts(1.0),
        20,
    ),
    "covariates": lambda: (regression, coins(), torch.randint(0, 5, (N,)).float(), 10),
    "columns": lambda: (pixels, coins((N, 3)), 24),
    "masks": lambda: (masked, coins(), coins() > 0, 4),
    "a site outside": lambda: (with_a_site_outside, coins(), 2),
}


@pytest.mark.parametrize("kind", SUMS)
def test_the_sum_over_distinct_rows_is_that_over_all(kind):
    torch.manual_seed(0)
    model, *data, most = SUMS[kind]()
    bound = Program(model).bind(*data).in_double()
    values = bound.draw_prior(7).values
    assert bound.num_terms <= most + 1
    whole = replace(bound, rows=None).log_joint(values)
    assert torch.allclose(bound.log_joint(values).total, whole.total, rtol=1e-13)


def normal(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfNormal(10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def normal_columns(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc.unsqueeze(-2), 2.0).to_event(1), obs=x)


def normal_vectors(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.5, 0.2, 0.7]])
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(loc.unsqueeze(-2), scale_tril=factor), obs=x)


NORMALS = {
    "numbers": (normal, lambda: 5 + 3 * torch.randn(N), 2),
    "far from zero": (normal, lambda: 1e6 + torch.randn(N, dtype=torch.float64), 2),
    "columns": (normal_columns, lambda: torch.randn(N, 3) @ torch.randn(3, 3), 6),
    "vectors": (normal_vectors, lambda: torch.randn(N, 3) @ torch.randn(3, 3), 6),
    "a plane": (normal_vectors, lambda: torch.randn(N, 1) * torch.ones(3), 6),
}


@pytest.mark.parametrize("kind", NORMALS)
def test_rows_of_the_same_moments_stand_for_normal_data(kind):
    torch.manual_seed(0)
    model, data, most = NORMALS[kind]
    bound = Program(model).bind(data()).in_double()
    values = bound.draw_prior(7).values
    assert len(bound.rows.weights) == most
    whole = replace(bound, rows=None).log_joint(values).likelihood
    assert torch.allclose(bound.log_joint(values).likelihood, whole, rtol=1e-10)


def heteroscedastic(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, torch.linspace(1, 2, len(x))), obs=x)


def heavy_tailed(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.StudentT(4.0, loc, 1.0), obs=x)


def seen_in_two_ways(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x**2)


def test_rows_keep_the_digits_of_narrow_directions():
    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))[..., None, None, None]
        factor = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) + scale * torch.tensor([0.0, 1.0]).diag()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=x)

    torch.manual_seed(0)
    x = torch.randn(N, 1, dtype=torch.float64).expand(N, 2).clone()
    x[:, 1] += 1e-7 * torch.randn(N, dtype=torch.float64)
    bound = Program(model).bind(x).in_double()
    values = {"scale": torch.tensor([1e-7], dtype=torch.float64)}
    whole = replace(bound, rows=None).log_joint(values).likelihood
    assert len(bound.rows.weights) == 4
    assert torch.allclose(bound.log_joint(values).likelihood, whole, rtol=0, atol=1e-3)


def test_data_too_far_from_zero_for_the_digits_of_rows_are_summed_one_by_one():
    torch.manual_seed(0)
    x = 1e9 + 1e-3 * torch.randn(N, dtype=torch.float64)
    assert Program(normal).bind(x).in_double().rows is None


@pytest.mark.parametrize("model", [heteroscedastic, heavy_tailed, seen_in_two_ways])
def test_densities_that_are_not_quadratic_use_all_data(model):
    torch.manual_seed(0)
    assert Program(model).bind(torch.randn(N)).in_double().rows is None


def batch_statistics(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(p + x.mean(), 1.0), obs=x)


def neighbours(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    before = torch.cat([x[:1], x[:-1]])
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(p * before, 1.0), obs=x)


OFFSET = torch.linspace(0, 1, N)


def closed_over(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(p + OFFSET[: len(x)], 1.0), obs=x)


def latent_of_each(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def total_as_a_factor(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(p, 1.0), obs=x)
    pyro.sample("sum", dist.Normal(p * len(x), 30.0), obs=x.sum())


def seldom_a_trend(x):
    slope = pyro.sample("slope", dist.Normal(-5.0, 1.0)).relu()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope * torch.arange(len(x)), 1.0), obs=x)


def seldom_a_closed_over_trend(x):
    slope = pyro.sample("slope", dist.Normal(-5.0, 1.0)).relu()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope * OFFSET[: len(x)], 1.0), obs=x)


def seldom_the_number_of_data(x):
    excess = pyro.sample("excess", dist.Normal(-5.0, 1.0)).relu()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(excess * len(x), 1.0), obs=x)


def seldom_a_branch(x):
    slope = pyro.sample("slope", dist.Normal(-5.0, 1.0))
    trend = torch.arange(len(x)) / len(x) if slope > 0 else 0.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(trend, 1.0), obs=x)


@pytest.mark.filterwarnings("ignore:particles are run one by one")
@pytest.mark.parametrize(
    "model",
    [
        batch_statistics,
        neighbours,
        closed_over,
        latent_of_each,
        total_as_a_factor,
        seldom_a_trend,
        seldom_a_closed_over_trend,
        seldom_the_number_of_data,
        seldom_a_branch,
    ],
)
def test_programs_that_are_no_sum_over_rows_use_all_data(model):
    torch.manual_seed(0)
    bound = Program(model).bind(coins()).in_double()
    assert bound.rows is None
    assert bound.num_terms == bound.num_dims


def test_a_prior_that_the_data_choose_uses_all_data():
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0) if x.mean() < 0.4 else dist.Beta(9.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = (torch.arange(N) % 10 == 9).float()
    assert Program(model).bind(x).in_double().rows is None


def test_few_data_are_summed_one_by_one():
    bound = Program(univariate(dist.Bernoulli)).bind(coins((999,))).in_double()
    assert bound.rows is None


def test_other_data_in_place_of_the_bound_ones_are_seen():
    bound = Program(univariate(dist.Bernoulli)).bind(coins()).in_double()
    values = bound.draw_prior(3).values
    ones = torch.ones(N, dtype=torch.float64)
    assert bound.num_terms == 2
    other = replace(bound, args=(ones,)).log_joint(values).likelihood
    assert torch.allclose(other, N * values["rate"].double().log().reshape(-1))


def test_a_hundred_thousand_tosses_cost_as_much_as_two():
    torch.manual_seed(0)
    x = coins((100_000,))
    heads = float(x.sum())
    truth = lgamma(heads + 2) + lgamma(len(x) - heads + 2) - lgamma(len(x) + 4)
    truth += lgamma(4.0)
    found = evidence.Laplace(num_starts=4)(Program(univariate(dist.Bernoulli)), x, seed=0)
    assert found.reliable
    assert abs(found.log_z.item() - truth) < 4 * found.std_error.item() + 1e-6
    assert found.std_error < 0.02
