"""Code lengths against closed forms and enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.diagnostics import code_length
from ppl_dgm.evidence import ELBO

X = torch.tensor([-1.5, 0.2, 2.0])


def model(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("z", dist.Normal(0.6 * x, 0.4))


def test_parts_match_closed_forms():
    length = code_length(Program(model, guide), X, num_particles=40_000)
    mean, second = 0.6 * X.double(), (0.6 * X.double()).square() + 0.16
    log_two_pi = math.log(2 * math.pi)
    latents = 0.5 * (log_two_pi + second)
    data = 0.5 * log_two_pi + math.log(0.5) + 0.5 * ((X.double() - mean).square() + 0.16) / 0.25
    refund = torch.full((3,), 0.5 * (log_two_pi + 1) + math.log(0.4), dtype=torch.float64)
    assert torch.allclose(length.latents, latents, atol=0.03)
    assert torch.allclose(length.data, data, atol=0.03)
    assert torch.allclose(length.refund, refund, atol=0.03)
    total = latents + data - refund
    assert bool(((length.total - total).abs() < 4 * length.std_error).all())
    assert bool((length.std_error > 0).all())
    assert torch.allclose(length.total, length.rate + length.distortion)
    assert torch.allclose(length.two_part, length.total + length.refund)


def test_net_length_is_minus_the_elbo_and_no_less_than_the_information():
    program = Program(model, guide)
    length, elbo = code_length(program, X, num_particles=4000), ELBO(num_particles=4000)(program, X)
    error = (length.std_error.square() + elbo.std_error.square()).sqrt()
    assert bool(((length.total + elbo.log_z).abs() < 4.5 * error).all())
    information = -dist.Normal(0.0, math.sqrt(1.25)).log_prob(X).double()
    assert bool((length.total > information - 4 * length.std_error).all())


def test_two_part_code_of_a_discrete_latent():
    """Alice names a component and then the datum.

    At a point mass of one half each the refund is log 2.
    """

    def mixture(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.25))
            pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)

    def coin(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))

    length = code_length(Program(mixture, coin), X, num_particles=20_000)
    assert torch.allclose(length.refund, torch.full((3,), math.log(2), dtype=torch.float64))
    mean = -0.5 * (math.log(0.25) + math.log(0.75))
    assert torch.allclose(length.latents, torch.full((3,), mean, dtype=torch.float64), atol=0.02)


def test_latents_shared_by_all_data_give_one_length():
    def shared(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]), obs=x)

    def shared_guide(x):
        pyro.sample("mu", dist.Normal(x.sum() / (len(x) + 1), 0.5))  # the posterior of three data

    length = code_length(Program(shared, shared_guide), X)
    covariance = torch.eye(3) + 1.0
    truth = -dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(X).item()
    assert length.total.shape == ()
    assert length.total.item() == pytest.approx(truth, abs=1e-4)


def test_without_latents_the_whole_length_is_the_datums():
    def plain(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    length = code_length(Program(plain), X)
    assert torch.allclose(length.data, -dist.Normal(0.0, 1.0).log_prob(X).double())
    assert length.latents.abs().max() == 0
    assert length.refund.abs().max() == 0


def test_chunks_of_particles_and_data_change_nothing_but_the_draws():
    program = Program(model, guide)
    whole, chunked = (
        code_length(program, X, num_particles=3000, memory=memory) for memory in (2**28, 5000)
    )
    error = (whole.std_error.square() + chunked.std_error.square()).sqrt()
    assert chunked.total.shape == (3,)
    assert bool(((whole.total - chunked.total).abs() < 4.5 * error).all())


def test_one_particle_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        code_length(Program(model, guide), X, num_particles=1)
