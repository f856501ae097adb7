"""Noise of gradients against closed forms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.diagnostics import gradient_noise
from ppl_dgm.objectives import ELBO, REINFORCE, RLOO

X = torch.tensor([0.5])


def model(x=None):
    with pyro.plate("data", 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=None):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", 1):
        pyro.sample("z", dist.Normal(loc, 0.8))


def posterior(x=None):
    loc = pyro.param("loc", torch.tensor(0.25))
    with pyro.plate("data", 1):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


@pytest.mark.parametrize("particles", [1, 4])
def test_path_gradient_has_its_variance(particles):
    """d ELBO / d loc = x - 2 z for one draw: mean x - 2 loc, variance 4 s^2."""
    found = gradient_noise(
        Program(model, guide), X, objective=ELBO(particles), num_draws=400, seed=1
    )
    variance = 4 * 0.64 / particles
    assert found.mean["loc"].item() == pytest.approx(0.5, abs=4 * (variance / 400) ** 0.5)
    assert found.total_variance == pytest.approx(variance, rel=4 * (2 / 400) ** 0.5)


MANY = torch.full((400,), 0.5)  # copies of X, each with a parameter of its own


@pytest.mark.parametrize("baseline", [0.0, -2.0])
def test_score_of_a_gaussian_has_the_noise_of_its_formula(baseline):
    """The score (z - loc) / s^2 times log w - b, by quadrature; there is less in the path."""

    def many(x=None):
        with pyro.plate("data", len(MANY)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guess(x=None):
        loc = pyro.param("loc", torch.zeros(len(MANY)))
        with pyro.plate("data", len(MANY)):
            pyro.sample("z", dist.Normal(loc, 0.8))

    class Constant(torch.nn.Module):
        def forward(self, x=None):
            return torch.tensor(baseline)

    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, chance = torch.tensor(0.8 * nodes), torch.tensor(weights / weights.sum())
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
    each = (log_w - dist.Normal(0.0, 0.8).log_prob(z) - baseline) * z / 0.64
    mean = float(chance @ each)
    variance, fourth = (float(chance @ (each - mean) ** k) for k in (2, 4))
    objective = REINFORCE(baseline=Constant(), gradient="score")
    found = gradient_noise(Program(many, guess), MANY, objective=objective, num_draws=20)
    count = 20 * len(MANY)
    assert mean == pytest.approx(0.5)
    assert found.mean["loc"].mean().item() == pytest.approx(0.5, abs=4 * (variance / count) ** 0.5)
    error = ((fourth - variance**2) / count) ** 0.5
    assert found.total_variance / len(MANY) == pytest.approx(variance, abs=4 * error)


def test_sticking_the_landing_has_none_at_the_posterior():
    program = Program(model, posterior)
    stuck = gradient_noise(program, X, objective=ELBO(gradient="stl"), num_draws=20)
    free = gradient_noise(program, X, objective=ELBO(), num_draws=20)
    assert stuck.total_variance < 1e-10
    assert free.total_variance > 0.1


def test_score_of_a_coin_and_what_a_baseline_saves():
    """q = sigmoid(a): d log q = z - q, with reward r(z): the mean of (z - q) r(z)."""

    def coin(x=None):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    def guess(x=None):
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.0))))

    program = Program(coin, guess)
    one = gradient_noise(program, X, objective=REINFORCE(), num_draws=100)
    rewards = [dist.Normal(3 * z, 1.0).log_prob(X).item() for z in (0.0, 1.0)]
    values = torch.tensor([-0.5 * rewards[0], 0.5 * rewards[1]])
    error = (one.total_variance / 100) ** 0.5
    assert one.mean["a"].item() == pytest.approx(values.mean().item(), abs=4 * error)
    assert gradient_noise(program, X, objective=RLOO(2)).total_variance < one.total_variance


def test_the_program_and_the_generator_are_left_alone():
    program, state = Program(model, guide), torch.get_rng_state()
    gradient_noise(program, X, objective=ELBO(), num_draws=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in program.parameters())
    with pytest.raises(ValueError, match="num_draws is 1"):
        gradient_noise(program, X, objective=ELBO(), num_draws=1)
