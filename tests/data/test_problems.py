"""The collection of problems: answers, other libraries' view of them, and figures over seeds."""

import math

import numpy as np
import pytest
import torch

from ppl_dgm.data import problems
from ppl_dgm.data.problems import Outcome, load, load_all, run_problem, summarise, vectors
from ppl_dgm.evidence import Exact, HarmonicMean, PriorSampling


def test_every_problem_says_how_its_answer_is_known():
    found = load_all()
    assert len(found) == 68
    assert {one.known for one in found.values()} == {
        "closed form",
        "quadrature",
        "sum over all values",
        "importance sampling, millions of draws",
    }
    assert all(name == one.name and math.isfinite(one.log_z) for name, one in found.items())
    assert problems.load is load
    with pytest.raises(ValueError, match="there is no problem 'bananas'; there are bs_beta"):
        load("bananas")


@pytest.mark.parametrize("name", ["zero_probability", "bs_betabinomial_tutorial"])
def test_answers_by_another_way(name):
    problem = load(name)
    if problem.known == "sum over all values":
        assert float(Exact()(problem.program(), *problem.args).log_z) == pytest.approx(
            problem.log_z
        )
        return
    found = run_problem(problem, PriorSampling(num_particles=100_000))
    assert abs(found.error) < 4 * found.scale


@pytest.mark.parametrize("name", ["clamped_mean", "small_integers"])
def test_vectors_integrate_to_the_answer(name):
    """Quadrature over the one unconstrained number, as another library would do it."""
    problem = load(name)

    def quadrature(program, *args, seed):
        target = vectors(problem)
        grid = np.linspace(-160, 160, 40_001)[:, None]
        log_f = target.log_prior(grid) + target.log_likelihood(grid)
        return np.logaddexp.reduce(log_f) + math.log(320 / 40_000)

    found = run_problem(problem, quadrature)
    assert found.text == ""
    assert found.estimator == "quadrature"
    assert abs(found.error) < 1e-4


def test_vectors_of_local_latents_are_joined():
    target = vectors(load("local_student"))
    assert target.dim == 20
    draws = target.sample_prior(3, seed=1)
    assert draws.shape == (3, 20)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(draws)).sum(-1)
    assert np.allclose(target.log_prior(draws), expected)
    with pytest.raises(ValueError, match="discrete"):
        vectors(load("rare_count"))


def test_outcomes_of_estimators():
    problem = load("bs_sleep_jss_H0")
    broken = run_problem(problem, lambda program, *args, seed: 1 / 0, name="broken")
    assert (broken.status, broken.estimator) == ("raised", "broken")
    assert "ZeroDivisionError" in broken.text
    alarm = run_problem(problem, HarmonicMean(num_draws=200))
    assert alarm.status == "alarm"
    pair = run_problem(problem, lambda program, *args, seed: (problem.log_z + 0.1, 0.2))
    assert pair.error == pytest.approx(0.1)
    assert pair.scale == pytest.approx(0.2)
    assert pair.covered
    assert not pair.missed


def outcome(log_z, error, status="fine", seconds=1.0, seed=0):
    return Outcome(
        "p", "e", seed, status, log_z, error, seconds, "", truth=1.0, reference_error=0.0
    )


def test_figures_over_seeds():
    nothing = outcome(math.nan, math.nan, "raised", 9.0)
    late = outcome(math.nan, math.nan, "late", math.nan)
    found = summarise(
        [
            outcome(1.1, 0.1),
            outcome(1.3, 0.1),
            outcome(2.0, 0.1),
            outcome(2.0, 0.1, "alarm"),
            nothing,
            late,
        ]
    ).loc[("p", "e")]
    errors = [0.1, 0.3, 1.0, 1.0]
    assert found.bias == pytest.approx(0.6)
    assert found.bias_error == pytest.approx(np.std(errors, ddof=1) / 2)
    figures = found[["seeds", "numbers", "covered", "alarms", "missed", "late", "seconds"]]
    assert figures.tolist() == [6, 4, 1, 2, 1, 1, 1.0]


def test_small_misses_are_none():
    assert not outcome(1.015, 0.0).missed
    assert outcome(1.03, 0.0).missed
    assert not outcome(1.3, 0.1).missed
