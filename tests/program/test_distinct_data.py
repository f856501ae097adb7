"""Sums over distinct rows of data, each times its count."""

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
    whole = replace(bound, distinct=None).log_joint(values)
    assert torch.allclose(bound.log_joint(values).total, whole.total, rtol=1e-13)


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


@pytest.mark.parametrize(
    "model", [batch_statistics, neighbours, closed_over, latent_of_each, total_as_a_factor]
)
def test_programs_that_are_no_sum_over_rows_use_all_data(model):
    torch.manual_seed(0)
    bound = Program(model).bind(coins()).in_double()
    assert bound.distinct is None
    assert bound.num_terms == bound.num_dims


@pytest.mark.parametrize("size", [999, N])
def test_few_data_or_mostly_different_ones_are_not_counted(size):
    data = coins((size,)) if size < N else torch.randn(N)
    bound = Program(univariate(lambda r: dist.Normal(r, 1.0))).bind(data).in_double()
    assert bound.distinct is None


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
