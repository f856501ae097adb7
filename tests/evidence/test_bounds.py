"""CUBO, jackknife and Russian roulette: sides of the bounds, orders of the bias, unbiasedness."""

import math
from itertools import combinations

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import (
    CUBO,
    ELBO,
    IWELBO,
    JVI,
    SUMO,
    ImportanceSampling,
    over_particles,
)
from ppl_dgm.evidence.jvi import jackknife, leave_one_out, leave_two_out
from ppl_dgm.evidence.sumo import reach, roulette, stopping_times
from ppl_dgm.sampling.importance import log_mean_exp

FLOAT = torch.float64
X = torch.full((200,), 1.3, dtype=FLOAT)  # one datum two hundred times: two hundred seeds at once
TRUTH = float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(1.3, dtype=FLOAT)))


def model(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=FLOAT), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guided(scale: float) -> Program:
    """The model with a guide off the posterior N(x / 2, 1 / 2)."""

    def guide(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, scale * torch.ones_like(x)))

    return Program(model, guide)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize(
    "estimator",
    [ELBO(3), IWELBO(32, 3), JVI(32, num_replicates=3)],
    ids=lambda estimator: estimator.name,
)
def test_errors_of_few_draws_cover(estimator):
    found = estimator(guided(0.72), X)
    covered = (found.log_z - found.log_z.mean()).abs() < 1.96 * found.std_error
    assert float(covered.double().mean()) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / len(X))


# ---- upper bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [4, 20, 400])
def test_cubo_is_above_in_expectation_at_any_number_of_draws(num_particles):
    mean, error = mean_and_error(CUBO(num_particles=num_particles)(guided(1.0), X).log_z)
    assert mean - TRUTH > -2 * error
    assert mean > TRUTH


def test_cubo_approaches_its_closed_form():
    # E_q w^2 by quadrature
    z = torch.linspace(-12, 12, 40001, dtype=FLOAT)
    log_w = (
        dist.Normal(0.0, 1.0).log_prob(z)
        + dist.Normal(z, 1.0).log_prob(X[0])
        - dist.Normal(0.52, 1.0).log_prob(z)
    )
    cubo = 0.5 * float(
        (2 * log_w + dist.Normal(0.52, 1.0).log_prob(z)).logsumexp(0) + math.log(24 / 40000)
    )
    result = CUBO(num_particles=20000)(guided(1.0), X[:20])
    mean, error = mean_and_error(result.log_z)
    assert abs(mean - cubo) < 4 * error + 1e-3
    assert float(result.log_z.std() / result.std_error.mean()) < 2


def test_cubo_of_order_one_is_tight():
    mean, error = mean_and_error(CUBO(num_particles=2000, order=1.0)(guided(1.0), X).log_z)
    assert abs(mean - TRUTH) < 4 * error + 1e-3


def test_bounds_enclose_the_evidence():
    program = guided(1.0)
    lower, upper = ELBO(num_particles=100)(program, X), CUBO(num_particles=100)(program, X)
    assert (lower.bound, upper.bound) == ("lower", "upper")
    assert float(lower.log_z.mean()) < TRUTH < float(upper.log_z.mean())


def test_a_guide_narrower_than_the_posterior_is_flagged():
    narrow = CUBO(num_particles=4000)(guided(0.3), X[:20])
    assert any("narrower" in warning for warning in narrow.warnings)
    assert CUBO(num_particles=4000)(guided(1.0), X[:20]).reliable


# ---- lower bounds --------------------------------------------------------------------------------


def test_the_weighted_bound_is_its_objective_and_its_gap_falls_as_one_over_k():
    program = guided(1.0)
    found = {k: IWELBO(num_particles=k, num_replicates=400)(program, X) for k in (2, 8, 32)}
    assert {result.bound for result in found.values()} == {"lower"}
    gaps = {k: mean_and_error(TRUTH - result.log_z) for k, result in found.items()}
    elbo, _ = mean_and_error(TRUTH - ELBO(num_particles=400)(program, X).log_z)
    assert elbo > gaps[2][0] > gaps[8][0]
    assert gaps[8][0] > 4 * gaps[8][1]
    assert gaps[8][0] / gaps[32][0] == pytest.approx(4.0, rel=0.2)
    spread = float(found[8].log_z.std() / found[8].std_error.mean())
    assert spread == pytest.approx(1.0, abs=0.2)


# ---- jackknife -----------------------------------------------------------------------------------


def test_leaving_out_is_what_it_says():
    log_w = torch.randn(7, 3, dtype=FLOAT)
    one = [log_mean_exp(log_w[[j for j in range(7) if j != i]]) for i in range(7)]
    two = [
        log_mean_exp(log_w[[j for j in range(7) if j not in pair]])
        for pair in combinations(range(7), 2)
    ]
    assert torch.allclose(leave_one_out(log_w), torch.stack(one).mean(0))
    assert torch.allclose(leave_two_out(log_w), torch.stack(two).mean(0))


def test_jackknife_is_exact_where_the_bias_is_a_power_of_one_over_k():
    log_w = torch.zeros(9, dtype=FLOAT)
    assert float(jackknife(log_w, 1)) == pytest.approx(0.0, abs=1e-12)
    assert float(jackknife(log_w, 2)) == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_jackknife_takes_the_bias_off(order):
    program = guided(1.0)
    result = JVI(num_particles=8, num_replicates=100, order=order)(program, X)
    plain, plain_error = mean_and_error(result.diagnostics["iwelbo"])
    mean, error = mean_and_error(result.log_z)
    assert TRUTH - plain > 8 * plain_error
    assert abs(mean - TRUTH) < 0.3 * (TRUTH - plain) + 3 * error


# ---- Russian roulette ----------------------------------------------------------------------------


def test_stopping_times_have_their_probabilities():
    stops = stopping_times(torch.rand(200000, dtype=FLOAT))
    for k in (1, 2, 5, 80, 85, 100):
        expected = float(reach(torch.tensor(float(k), dtype=FLOAT)))
        share = float((stops >= k).double().mean())
        assert abs(share - expected) < 5 * math.sqrt(expected / 200000) + 1e-9


def test_roulette_that_never_stops_is_weighted_by_reach():
    log_w = torch.randn(4, 6, dtype=FLOAT)
    bounds = [log_mean_exp(log_w[:, :k], 1) for k in range(1, 7)]
    expected = bounds[1] + sum(k * (bounds[1 + k] - bounds[k]) for k in range(1, 5))
    assert torch.allclose(roulette(log_w, 2, torch.full((4,), 4.0, dtype=FLOAT)), expected)


def test_sumo_is_unbiased_where_the_bound_is_not():
    result = SUMO(num_particles=2, num_replicates=100)(guided(1.0), X)
    mean, error = mean_and_error(result.log_z)
    bound, bound_error = mean_and_error(
        ImportanceSampling(num_particles=2)(guided(1.0), X.repeat(20)).log_z
    )
    assert abs(mean - TRUTH) < 4 * error
    assert TRUTH - bound > 4 * bound_error


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [JVI(), SUMO(num_replicates=400)])
def test_intervals_cover(estimator):
    result = estimator(guided(1.0), X)
    low, high = result.interval(0.95)
    covered = float(((low <= TRUTH) & (high >= TRUTH)).double().mean())
    assert 0.90 <= covered <= 0.985


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CUBO(order=0.5), "order"),
        (lambda: CUBO(num_particles=3), "num_particles"),
        (lambda: CUBO(proposal="flow"), "proposal"),
        (lambda: JVI(order=3), "order"),
        (lambda: JVI(num_replicates=1), "num_replicates"),
        (lambda: SUMO(num_replicates=0), "num_replicates"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_bias_that_adds_up_over_data_is_told():
    """Fifty data whose guide is far too narrow.

    The jackknife of eight draws leaves a bias in each.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    x = torch.linspace(-1, 1, 200, dtype=torch.float64)
    found = JVI(num_particles=8, num_replicates=200, proposal="prior")(Program(model), x)
    assert any("a bias remains" in warning for warning in found.warnings)
    many = JVI(num_particles=400, num_replicates=20, proposal="prior")(Program(model), x[:20])
    assert not any("a bias remains" in warning for warning in many.warnings)


def test_bound_over_particles_rises_from_the_elbo_to_the_evidence():
    """Proposed from the prior the ELBO is -(E (x - z)^2 + log 2 pi) / 2 with z ~ N(0, 1)."""

    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-1, 1, 200)
    curve = over_particles(Program(model), x, particles=(1, 8, 512), num_replicates=64)
    constant = -0.5 * math.log(2 * math.pi)
    elbo = constant - (x.square() + 1).mean() / 2
    log_z = dist.Normal(0.0, 2**0.5).log_prob(x).mean()
    low, middle, high = curve.per_datum
    assert abs(low - elbo) < 4 * curve.std_error[0]
    assert low < middle < high < log_z + 4 * curve.std_error[2]
    assert abs(high - log_z) < 0.01
    frame = curve.to_dataframe()
    assert list(frame.index) == [1, 8, 512]
    assert frame.bound[8] == pytest.approx(float(middle))
    assert curve.plot().get_xscale() == "log"
    plt.close("all")


def test_replicates_come_second():
    assert IWELBO(1, 20) == IWELBO(num_particles=1, num_replicates=20)
    assert JVI(32, 2).order == 2
    with pytest.raises(ValueError, match="num_particles is 0"):
        IWELBO(0)
