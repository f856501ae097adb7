"""Densities against quadrature, their samplers against their densities."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from ppl_dgm import data as ppl_data
from ppl_dgm.data import (
    DENSITIES,
    funnel,
    load_density,
)
from ppl_dgm.data import densities as densities_module

BOXES = {"ring": (3.0, 3.0), "grid": (5.0, 5.0), "banana": (9.0, 25.0), "pinwheel": (3.5, 3.5)}


def quadrature(name, points=701):
    """Points `[points^2, 2]` of a box that holds the mass, and the area each stands for."""
    half_width, half_height = BOXES[name]
    xs = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    ys = torch.linspace(-half_height, half_height, points, dtype=torch.float64)
    return torch.cartesian_prod(xs, ys), float((xs[1] - xs[0]) * (ys[1] - ys[0]))


@pytest.mark.parametrize("name", BOXES)
def test_densities_integrate_to_one_and_their_samplers_follow_them(name):
    x, area = quadrature(name)
    density = DENSITIES[name]().log_prob(x.float()).double().exp() * area
    assert abs(density.sum() - 1) < 1e-3
    draws = load_density(name, num_samples=20_000, seed=5).x.double()

    def statistics(points):
        a, b = points.unbind(-1)
        return torch.stack(
            [a, b, a * a, b * b, a * b, (3 * a).sin(), (3 * b).cos(), (a + 2 * b > 0.3).double()]
        )

    expected = statistics(x) @ density
    observed = statistics(draws)
    error = observed.std(-1) / math.sqrt(draws.shape[0])
    assert ((observed.mean(-1) - expected).abs() < 4 * error + 1e-3).all()


def test_funnel_is_its_formula():
    x = torch.randn(7, 3)
    expected = Normal(0.0, 2.0).log_prob(x[:, 0]) + Normal(0.0, (x[:, :1] / 2).exp()).log_prob(
        x[:, 1:]
    ).sum(-1)
    torch.testing.assert_close(funnel(2.0, 3).log_prob(x), expected)
    draws = load_density("funnel", 20_000).x
    scaled = draws[:, 1] * (-draws[:, 0] / 2).exp()
    for values, scale in ((draws[:, 0], 3.0), (scaled, 1.0)):
        assert abs(values.square().mean() - scale**2) < 4 * scale**2 * math.sqrt(2 / 20_000)


def test_pinwheel_without_turn_or_arms_is_a_gaussian():
    pinwheel = ppl_data.pinwheel(num_arms=1, rate=0.0, radial=0.5, tangential=0.2)
    gaussian = MultivariateNormal(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.04]).diag())
    x = torch.randn(20, 2)
    torch.testing.assert_close(pinwheel.log_prob(x), gaussian.log_prob(x))


@pytest.mark.parametrize(
    "transform",
    [
        densities_module.FunnelTransform(),
        densities_module.BananaTransform(0.7, 1.2),
        densities_module.SwirlTransform(0.8),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_transforms_invert_and_know_their_jacobian(transform):
    z = torch.randn(9, 2, dtype=torch.float64)
    x = transform(z)
    torch.testing.assert_close(transform.inv(x), z)
    jacobians = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in z])
    torch.testing.assert_close(
        transform.log_abs_det_jacobian(z, x), torch.linalg.slogdet(jacobians).logabsdet
    )


def test_draws_repeat_by_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    assert torch.equal(load_density("ring", 10, seed=1).x, load_density("ring", 10, seed=1).x)
    assert not torch.equal(load_density("ring", 10, seed=1).x, load_density("ring", 10, seed=2).x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: load_density("moons"), ValueError, "expected one of the densities banana, funnel"),
        (lambda: funnel(num_dims=1), ValueError, "expected at least 2"),
    ],
)
def test_bad_arguments_say_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()
