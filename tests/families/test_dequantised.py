"""Dequantised flows: bounds of probabilities known by quadrature, draws, fits, bad input."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program, evidence, fit
from ppl_dgm.compile import compile_function
from ppl_dgm.distributions import Floored, WithinCell
from ppl_dgm.families import (
    MAF,
    Dequantised,
    Flow,
    Glow,
    RealNVP,
    UniformNoise,
    VariationalNoise,
)
from ppl_dgm.objectives import ELBO, IWELBO

LEVELS = 4
NOISES: dict[str, Callable[[], torch.nn.Module]] = {
    "uniform": UniformNoise,
    "variational": lambda: VariationalNoise(2, LEVELS, 2, [8]),
}
FAST = {"seed": 0, "progress": False, "compile": False}


def all_levels() -> Tensor:
    axis = torch.arange(LEVELS).double()
    return torch.cartesian_prod(axis, axis)


def log_mass(flow: Flow, x: Tensor) -> Tensor:
    """log of the integral of the density over the cells of x, `[N]`, by Gauss and Legendre."""
    nodes, weights = map(torch.as_tensor, np.polynomial.legendre.leggauss(24))
    places = torch.cartesian_prod(nodes, nodes) / 2 + 0.5
    log_weights = torch.cartesian_prod(weights, weights).prod(-1).log() - np.log(4)
    with torch.no_grad():
        scores = flow.distribution().log_prob(x.unsqueeze(1) + places)
    return (scores + log_weights).logsumexp(-1)


@pytest.fixture(params=NOISES)
def program(request: pytest.FixtureRequest) -> Dequantised:
    torch.manual_seed(0)
    flow = RealNVP(2, 4, [8], activation=torch.nn.Tanh)  # smooth, for quadrature
    found = Dequantised(flow, LEVELS, NOISES[request.param]()).double()
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for parameter in found.guide.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found.start(all_levels())


def test_bounds_rise_to_the_probability_of_the_cell(program: Dequantised) -> None:
    x = all_levels()
    truth = log_mass(program.flow, x)
    elbo = evidence.ELBO(num_particles=2000)(program, x, seed=0)
    weighted = evidence.IWELBO(num_particles=8, num_replicates=250)(program, x, seed=0)
    sampled = evidence.ImportanceSampling(num_particles=20000)(program, x, seed=0)
    assert (elbo.bound, weighted.bound, sampled.bound) == ("lower", "lower", "estimate")
    assert bool((elbo.log_z < truth + 4 * elbo.std_error).all())
    assert bool((weighted.log_z < truth + 4 * weighted.std_error).all())
    assert elbo.log_z.mean() < weighted.log_z.mean() < truth.mean()
    assert bool(((sampled.log_z - truth).abs() < 4 * sampled.std_error + 1e-4).all())


def test_draws_are_levels_as_often_as_they_are_probable(program: Dequantised) -> None:
    torch.manual_seed(0)
    x, num = program.sample(20000), 20000
    expected = log_mass(program.flow, all_levels()).exp()
    found = (x.unsqueeze(1) == all_levels()).all(-1).double().mean(0)
    error = (expected * (1 - expected) / num).sqrt()
    assert bool(((found - expected).abs() < 4.5 * error + 1e-4).all())


def test_gradients_reach_every_parameter_and_state_travels(program: Dequantised) -> None:
    x, other = all_levels(), copy.deepcopy(program)
    loss = ELBO().differentiable_loss(program.model, program.guide, x)
    gradients = torch.autograd.grad(loss, list(program.parameters()))
    assert all(bool(torch.isfinite(g).all()) and bool((g != 0).any()) for g in gradients)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.1)
    other.load_state_dict(program.state_dict())
    values = [evidence.ELBO(num_particles=4)(p, x, seed=0).log_z for p in (program, other)]
    assert torch.equal(*values)


def test_captured_bounds_equal_eager_ones(program: Dequantised) -> None:
    def loss(x: Tensor) -> Tensor:
        return ELBO().differentiable_loss(program.model, program.guide, x)

    x = all_levels()
    torch.manual_seed(0)
    expected = loss(x)
    captured = compile_function(loss, (x,), backend="eager")
    torch.manual_seed(0)
    assert torch.allclose(captured(x), expected)


def twins(num: int) -> Tensor:
    """A level and its copy, of entropy log 4."""
    torch.manual_seed(5)
    return torch.randint(0, LEVELS, (num, 1)).expand(num, 2).float()


def fitted(make: Callable[[], Program]) -> Program:
    torch.manual_seed(0)
    rate = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
    program, x = make(), twins(500)
    fit(program, x, ELBO(), steps=150, batch_size=100, optimizer=rate, **FAST)
    return program


def test_raw_levels_have_no_limit_and_dequantised_ones_their_entropy() -> None:
    """The mean log probability of a model is at most minus the entropy of the data."""
    x = twins(500)
    _, counts = x.unique(dim=0, return_counts=True)
    entropy = -(counts / 500 * (counts / 500).log()).sum()
    raw = fitted(lambda: MAF(2, 2, [16]))
    slow = lambda parameters: torch.optim.Adam(parameters, 1e-3)  # noqa: E731
    fit(raw, x, steps=100, batch_size=100, optimizer=slow, **FAST)
    assert evidence.auto(raw, x).log_z.mean() > 0  # a density, above any probability
    values = []
    for noise in NOISES.values():
        bounded = fitted(lambda noise=noise: Dequantised(MAF(2, 2, [16]), LEVELS, noise()))
        found = evidence.ELBO(num_particles=20)(bounded, x, seed=0)
        values.append(found.log_z.mean())
    assert -entropy - 2 < values[0] < values[1] - 0.1 < -entropy


@pytest.mark.slow
def test_images_are_fitted_by_weighted_bounds() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (8, 64)).float()
    flow = Glow((1, 8, 8), 1, [8], levels=1)
    program = Dequantised(flow, 256, VariationalNoise((1, 8, 8), 256, 2, [8]))
    fit(program, x, IWELBO(2), steps=2, **FAST)
    bound = evidence.ELBO(num_particles=4)(program, x, seed=0).log_z
    assert bool(torch.isfinite(bound).all())
    assert bound.mean() / 64 > -1.5 * np.log(256)


def test_learned_noise_is_no_alarm() -> None:
    """Its density steps to zero at the cell's edges, where it is largest here."""
    torch.manual_seed(0)
    noise = VariationalNoise(2, LEVELS, 2, [8])
    with torch.no_grad():
        noise.transforms.held[0].params[:, 0] += 1.5  # shifts
    found = evidence.ELBO(4)(
        Dequantised(RealNVP(2, 1, [4]), LEVELS, noise), all_levels()[:2].float()
    )
    assert found.reliable, found.warnings


def test_noise_never_leaves_the_cell() -> None:
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 255.0, 65535.0]])
    law = WithinCell(x, UniformNoise()(x))
    y = law.sample((200000,))
    assert bool((y.floor() == x).all())
    assert torch.equal(Floored(y).log_prob(x), torch.zeros(200000, 1))


@pytest.mark.parametrize("noise", NOISES)
def test_contexts_reach_the_flow(noise: str) -> None:
    torch.manual_seed(0)
    program = Dequantised(MAF(2, 2, [8], num_context=1), LEVELS, NOISES[noise]())
    x, context = torch.ones(5, 2), torch.randn(5, 1)
    first, second = (
        evidence.ELBO(num_particles=4)(program, x, c, seed=0).log_z for c in (context, -context)
    )
    assert (first - second).abs().max() > 1e-3
    assert program.sample(3, context=context).shape == (3, 5, 2)


BAD = {
    "flow": (
        lambda: Dequantised(3, 4),  # type: ignore[arg-type]
        TypeError,
        "flow is a int; expected a Flow",
    ),
    "levels": (lambda: Dequantised(RealNVP(2), 1), ValueError, "levels is 1"),
    "fractions": (
        lambda: evidence.ELBO()(Dequantised(RealNVP(2), 4), torch.full((3, 2), 0.5)),
        ValueError,
        "expected data among the levels 0, ..., 3",
    ),
    "too high": (
        lambda: evidence.ELBO()(Dequantised(RealNVP(2), 4), torch.full((3, 2), 4.0)),
        ValueError,
        "expected data among the levels 0, ..., 3",
    ),
    "shape": (
        lambda: Dequantised(RealNVP(2), 4).initialise(torch.zeros(3, 5)),
        ValueError,
        "expected data \\['N', 2\\]",
    ),
    "noise size": (lambda: VariationalNoise(0, 4), ValueError, "at least 1"),
    "noise length": (lambda: VariationalNoise(2, 4, 0), ValueError, "length is 0"),
    "noise shape": (
        lambda: VariationalNoise((4, 4), 4),  # type: ignore[arg-type]
        ValueError,
        "an image shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()
