"""Evidence of many data that few rows cannot stand for, checked on a part of them."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, evidence
from ppl_dgm.evidence import many_data
from ppl_dgm.evidence.kinds import Allowance
from ppl_dgm.sampling.effort import limited_effort
from ppl_dgm.sampling.memory import MEMORY, allocated_bytes

N = 20_000


def logistic(y, x):
    w = pyro.sample("w", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=w * x), obs=y)


def data(size=N):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator)
    return (torch.rand(size, generator=generator) < torch.sigmoid(0.5 * x)).float(), x


def truth(y, x):
    """log p(y) by the trapezoid rule on 12 standard deviations around the mode."""
    y, x = y.double(), x.double()
    grid = 0.5 + 0.2 * torch.linspace(-1, 1, 401, dtype=torch.float64)
    logits = grid[:, None] * x
    log_joint = (y * logits - torch.nn.functional.softplus(logits)).sum(-1)
    log_joint = log_joint - 0.5 * (grid / 2).square() - math.log(2 * math.sqrt(2 * math.pi))
    return float(log_joint.logsumexp(0) + math.log(float(grid[1] - grid[0])))


def test_a_regression_on_many_data_is_checked_on_a_part():
    y, x = data()
    found = evidence.auto(Program(logistic), y, x, progress=False)
    assert found.reliable
    assert "on 1000 of 20000 data" in found.estimator
    assert abs(float(found.log_z) - truth(y, x)) < 4 * float(found.std_error)
    assert float(found.std_error) < 0.03
    assert float(found.diagnostics["densities"]) < 200_000


@pytest.mark.parametrize("reason", ["few data", "a guide", "own latents", "places"])
def test_other_programs_are_seen_whole(reason):
    def guide(y, x):
        pyro.sample("w", dist.Normal(0.5, 0.1))

    def noisy(y, x):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Bernoulli(logits=z * x), obs=y)

    def trending(y, x):
        w = pyro.sample("w", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=w * x + torch.arange(len(y)) / N), obs=y)

    program = {
        "few data": Program(logistic),
        "a guide": Program(logistic, guide),
        "own latents": Program(noisy),
        "places": Program(trending),
    }[reason]
    bound = program.bind(*data(N // 2 if reason == "few data" else N))
    settings = Allowance(0.02, 2_000_000, MEMORY).at(program, bound)
    assert many_data.checked_on_few(program, bound, 0, settings) is None


def test_a_part_whose_estimates_disagree_decides_nothing(monkeypatch):
    monkeypatch.setattr(many_data, "compare_two", lambda *_: replace(AGREED, agrees=False))
    program = Program(logistic)
    bound = program.bind(*data())
    settings = Allowance(0.02, 2_000_000, MEMORY).at(program, bound)
    assert many_data.checked_on_few(program, bound, 0, settings) is None


AGREED = evidence.agreement.Agreement(0.0, 1.0, True)


def test_a_budget_too_small_for_it_is_kept():
    program = Program(logistic)
    bound = program.bind(*data())
    settings = Allowance(0.02, 5000, MEMORY).at(program, bound)
    with limited_effort(math.inf) as effort:
        assert many_data.checked_on_few(program, bound, 0, settings) is None
    assert effort.spent <= 5000


def test_prior_draws_cost_no_data():
    """Where the prior draws all latents, and none belongs to a datum."""
    few, many = (Program(logistic).bind(*data(size)) for size in (2000, N))
    assert many.structure.divisible
    costs = [allocated_bytes(lambda b=bound: b.draw_prior(50)) for bound in (few, many)]
    assert costs[1] == costs[0]
