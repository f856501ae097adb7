"""Densities are counted where they are evaluated, and limited."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import AIS, Estimator, NestedSampling, ThermodynamicIntegration
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.climbing import climb
from ppl_dgm.sampling.effort import GRADIENT, OverBudgetError, limited_effort, spend
from ppl_dgm.sampling.importance import weight_chunks
from ppl_dgm.sampling.kernels import HMC, RandomWalk


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sin(), 1.0), obs=x)


def normal(y: Tensor) -> Tensor:
    return -0.5 * y.square().sum(-1)


def test_weights_count_for_every_datum() -> None:
    bound = Program(local).bind(torch.zeros(7))
    with limited_effort(1e6) as effort:
        list(weight_chunks(bound, 100, memory=2000))
    assert effort.spent == 700


def test_points_and_gradients_count() -> None:
    with limited_effort(1e6) as effort:
        evaluate(normal, torch.zeros(5, 3, 2))
        assert effort.spent == 15
        climb(normal, torch.ones(4, 2), 1)
    # a density with its slope at start and end, and the step doubled once and twice
    assert effort.spent == 15 + 4 * (2 * GRADIENT + 2)


def test_moves_count_by_their_gradients() -> None:
    step = torch.full((3,), 0.25)
    assert HMC(num_leapfrog=10, trajectory=1.0).cost(step) == 4 * GRADIENT
    assert RandomWalk().cost(step) == 1


@pytest.mark.parametrize(
    ("estimator", "least"),
    [
        (AIS(num_temperatures=50, num_chains=500, num_pilots=32, compile=False), 49 * 500),
        (
            ThermodynamicIntegration(
                10, 4, num_draws=30, num_warmup=20, num_pilots=32, compile=False
            ),
            10 * 4 * 50,
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_moves_along_a_path_count(estimator: Estimator, least: int) -> None:
    with limited_effort(math.inf) as effort:
        estimator(Program(shared), torch.zeros(7), seed=0)
    assert effort.spent > GRADIENT * least


def test_every_density_of_nested_sampling_counts() -> None:
    pytest.importorskip("dynesty")
    with limited_effort(math.inf) as effort:
        found = NestedSampling(num_live=50)(Program(shared), torch.zeros(7), seed=0)
    assert effort.spent >= found.diagnostics["calls"] - 50


def test_costs_are_not_read_where_nobody_counts() -> None:
    read: list[int] = []

    def cost() -> float:
        read.append(1)
        return GRADIENT

    spend(4, cost)
    assert not read
    with limited_effort(math.inf) as effort:
        spend(4, cost)
    assert (effort.spent, len(read)) == (4 * GRADIENT, 1)


def test_more_than_the_limit_raises_and_outer_counts_include_inner_ones() -> None:
    with limited_effort(100) as outer:
        with limited_effort(10) as inner:
            spend(6)
            with pytest.raises(OverBudgetError, match="10 densities"):
                spend(6)
        assert (inner.spent, outer.spent) == (12, 12)
        spend(5)
    spend(1000)
    assert outer.spent == 17
