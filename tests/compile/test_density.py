"""Compiled log densities against autodiff, of plain functions and of programs.

They run over chains and data.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.compile import Backend, compile_density, compile_loop, value_and_gradient

X = torch.tensor([0.3, -1.2, 2.0])


def model(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def log_joint(point: Tensor, x: Tensor) -> Tensor:
    """log p(x, scale) plus the Jacobian of scale = exp(z), for `[chains, 1]` points."""

    def one(z: Tensor) -> Tensor:
        trace = poutine.trace(poutine.condition(model, {"scale": z.exp()})).get_trace(x)
        return trace.log_prob_sum() + z

    return torch.func.vmap(lambda z: one(z[0]))(point)


def closed_form(z: Tensor) -> tuple[Tensor, Tensor]:
    """With z = log scale, up to a constant, and its derivative.

    It is -z^2 / 2 - n z - sum x^2 exp(-2 z) / 2.
    """
    squares = (X**2).sum()
    constant = -0.5 * (1 + len(X)) * torch.log(torch.tensor(2 * torch.pi))
    value = constant - z**2 / 2 - len(X) * z - squares * torch.exp(-2 * z) / 2
    return value, -z - len(X) + squares * torch.exp(-2 * z)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_program_over_chains(backend: Backend) -> None:
    points = torch.linspace(-1.0, 1.0, 7)[:, None]
    expected, slope = closed_form(points[:, 0])
    value, gradient = compile_density(log_joint, torch.zeros(7, 1), X, backend=backend)(points, X)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, 0], slope)


def test_leading_dimensions_keep_to_themselves() -> None:
    target = torch.randn(5)
    density = compile_density(
        lambda z: -((z - target) ** 4).sum(-1), torch.zeros(3, 4, 5), backend="eager"
    )
    points = torch.randn(3, 4, 5)
    value, gradient = density(points)
    assert value.shape == (3, 4)
    torch.testing.assert_close(gradient, -4 * (points - target) ** 3)


def test_leapfrog_steps_in_a_compiled_loop() -> None:
    """A harmonic oscillator.

    The leapfrog map with step e has the exact angle 2 asin(e / 2) per step.
    """
    energy = value_and_gradient(lambda z: -0.5 * (z**2).sum(-1))

    def leapfrog(
        state: tuple[Tensor, Tensor], size: Tensor, _: object
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        point, momentum = state
        momentum = momentum + 0.5 * size * energy(point)[1]
        point = point + size * momentum
        value, slope = energy(point)
        return (point, momentum + 0.5 * size * slope), value.sum()

    start = (torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    sizes = torch.full((20,), 0.1, dtype=torch.float64)
    loop = compile_loop(leapfrog, start, sizes, backend="eager")
    (point, _), _ = loop(start, sizes)
    angle = 20 * 2 * torch.asin(torch.tensor(0.05, dtype=torch.float64))
    torch.testing.assert_close(point, angle.cos().expand(4, 1))
