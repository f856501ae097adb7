"""Densities of noisy levels as lower bounds of the levels' probability."""

from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, evidence

LEVELS = torch.arange(6.0)
CELLS = dist.Normal(2.0, 1.5).cdf(torch.arange(7.0)).diff().log()  # the truth


def model(y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(2.0, 1.5), obs=y)


@cache
def noisy(seed):
    noise = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    return evidence.Exact()(Program(model), LEVELS + noise)


def test_the_mean_over_noise_is_the_bound_and_its_error_covers():
    """E_u log p(k + u) by quadrature; 4 standard errors."""
    u = (torch.arange(1000.0) + 0.5) / 1000
    bound = dist.Normal(2.0, 1.5).log_prob(LEVELS + u.unsqueeze(-1)).mean(0)
    found = evidence.over_noise([noisy(seed) for seed in range(200)])
    assert found.bound == "lower"
    assert bool(((found.log_z - bound).abs() < 4 * found.std_error).all())
    assert bool((bound < CELLS).all())


def test_errors_over_two_draws_have_the_right_size():
    """The standard error of the sum, over 100 pairs, against the spread of their means."""
    pairs = [evidence.over_noise([noisy(2 * i), noisy(2 * i + 1)]) for i in range(100)]
    totals = torch.stack([pair.total for pair in pairs])
    squares = torch.stack([pair.total_std_error.square() for pair in pairs])
    assert squares.mean().sqrt().item() == pytest.approx(totals.std().item(), rel=0.15)


def test_one_draw_has_no_error():
    with pytest.raises(ValueError, match="two or more draws"):
        evidence.over_noise([noisy(0)])
    with pytest.raises(ValueError, match="unlike kinds"):
        evidence.over_noise([noisy(0), evidence.Exact()(Program(model), LEVELS[:3])])
