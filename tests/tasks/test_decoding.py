"""Reconstructions and interpolations of programs whose decoders are known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.families import VAE, IndependentBernoulli
from ppl_dgm.tasks import decode, interpolate, reconstruct
from ppl_dgm.tasks.decoding import spherical

WEIGHT = torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 0.8]])
X = torch.tensor([[1.2, 0.3, 0.0], [-0.5, 0.0, 1.1]])


def model(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((z.unsqueeze(-1) * WEIGHT).sum(-2), 3.0).to_event(1), obs=x)


def mean_code(x):
    return (x.unsqueeze(-1) * 0.3 * WEIGHT.T).sum(-2)


def guide(x=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean_code(x), 0.1).to_event(1))


def test_reconstructions_decode_draws_of_the_guide():
    rebuilt = reconstruct(Program(model, guide), X, num_draws=4000)
    assert rebuilt.shape == (4000, 2, 3)
    mean, std = mean_code(X) @ WEIGHT, (0.01 * WEIGHT.T @ WEIGHT).diagonal().sqrt()
    assert bool(((rebuilt.mean(0) - mean).abs() < 4.5 * std / math.sqrt(4000)).all())
    assert torch.allclose(
        rebuilt.std(0), std.expand(2, 3), rtol=0.06
    )  # of z alone: the noise of x is not in it


def test_interpolations_of_a_linear_decoder_are_lines_between_reconstructions():
    start, end = X, X.flip(0) * 2
    path = interpolate(Program(model, guide), start, end, num_steps=5, num_particles=2000)
    first, last = mean_code(start) @ WEIGHT, mean_code(end) @ WEIGHT
    for i, time in enumerate(torch.linspace(0, 1, 5)):
        assert torch.allclose(path[i], torch.lerp(first, last, time), atol=0.02)
    assert torch.allclose(path[2], (path[0] + path[4]) / 2, atol=1e-5)


def test_spherical_paths_keep_norm_and_speed():
    first, last = (
        torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
        torch.tensor([[0.0, 2.0, 0.0], [2.0, 2.0, 0.0]]),
    )
    points = spherical(first, last, torch.linspace(0, 1, 7).reshape(7, 1, 1))
    assert torch.allclose(points[:, 0].norm(dim=-1), torch.full((7,), 2.0))
    steps = points[:, 0].diff(dim=0).norm(dim=-1)
    assert torch.allclose(steps, steps[0].expand(6))
    assert torch.allclose(
        points[:, 1], torch.lerp(first[1], last[1], torch.linspace(0, 1, 7).unsqueeze(-1))
    )  # parallel
    assert torch.allclose(points[0], first, atol=1e-6)
    assert torch.allclose(points[-1], last, atol=1e-6)


def test_spherical_interpolation_has_the_same_ends():
    program = Program(model, guide)
    line, arc = (
        interpolate(program, X, X.flip(0), path=path, num_steps=3)
        for path in ("linear", "spherical")
    )
    assert torch.allclose(line[[0, 2]], arc[[0, 2]], atol=1e-5)
    assert (line[1] - arc[1]).abs().max() > 0.01


def test_constrained_latents_are_interpolated_unconstrained():
    """A positive latent: geometric, not arithmetic, means."""

    def rates(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(rate, 1.0), obs=x)

    def tight(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(x.log(), 1e-4))

    path = interpolate(Program(rates, tight), torch.tensor([1.0]), torch.tensor([9.0]), num_steps=3)
    assert torch.allclose(path[:, 0], torch.tensor([1.0, 3.0, 9.0]), rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: interpolate(p, X, X[:1]), "pairs of data"),
        (lambda p: interpolate(p, X, X, num_steps=1), "num_steps is 1"),
        (lambda p: interpolate(p, X, X, path="geodesic"), "'geodesic'"),
        (lambda p: reconstruct(p, X, num_draws=0), "num_draws is 0"),
        (lambda p: reconstruct(Program(model, guide, site="y"), X), "not 'y'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(Program(model, guide))


def test_programs_without_latents_or_mean_are_refused():
    def plain(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="nothing to decode"):
        reconstruct(Program(plain), X)

    class Meanless(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    def meanless(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Meanless(z.unsqueeze(-1) * torch.ones(3), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="no mean"):
        reconstruct(Program(meanless), X)


# ---- decoding given codes ------------------------------------------------------------------------


def two_latents(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(a.unsqueeze(-1) + b, 1.0).to_event(1), obs=x)


def test_decode_gives_the_mean_at_named_codes():
    program = Program(two_latents)
    codes = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0, 1.0], [3.0, 4.0]])}
    assert torch.equal(decode(program, codes), torch.tensor([[1.0, 2.0], [5.0, 6.0]]))
    with pytest.raises(ValueError, match="name them"):
        decode(program, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"codes of 'b' have shape \[2\]"):
        decode(program, {"b": torch.zeros(2)})
    drawn = decode(program, {"b": torch.zeros(2000, 2)})[:, 0]
    assert abs(float(drawn.std()) - 1) < 0.1


def test_decode_leaves_program_and_generator_alone():
    vae, codes = VAE(6, 2, hidden=[8]), np.zeros((3, 2), dtype="float32")
    state = torch.get_rng_state()
    found = decode(vae, codes)
    assert torch.equal(torch.get_rng_state(), state)
    net = vae.model.fn.decoder
    assert torch.allclose(found, net(torch.zeros(3, 2)).sigmoid(), atol=1e-6)
    assert found.grad_fn is None
    with pytest.raises(ValueError, match="no latents"):
        decode(IndependentBernoulli(3), torch.zeros(1, 3))
