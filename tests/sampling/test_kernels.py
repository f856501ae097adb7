"""Transitions leave their density invariant, adapt to their acceptance, and cost what they say."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.sampling.kernels import (
    HMC,
    MALA,
    ULA,
    DualAveraging,
    Gibbs,
    Kernel,
    RandomWalk,
    State,
    Target,
)
from ppl_dgm.sampling.kernels.adaptation import nudge_step_size, weighted_scale
from ppl_dgm.sampling.kernels.metropolis import leapfrog
from ppl_dgm.sampling.kernels.targets import power

NUM_CHAINS = 20_000
BETA = 0.7
ADJUSTED: list[Kernel] = [
    HMC(num_leapfrog=4, trajectory=math.inf),
    HMC(jitter=0.0, trajectory=2.0),
    MALA(),
    RandomWalk(),
]
KERNELS = [
    pytest.param(kernel, id=type(kernel).__name__ + str(i)) for i, kernel in enumerate(ADJUSTED)
]


def log_gamma(point: Tensor) -> tuple[Tensor, Tensor]:
    """y = log g with g ~ Gamma(2 + 2 beta, 1), a skewed density.

    Its base is 2 y - e^y, its tilt 2 y; coordinates are independent.
    """
    return (2 * point - point.exp()).sum(-1), 2 * point.sum(-1)


def draw_log_gamma(beta: float, *shape: int) -> Tensor:
    return dist.Gamma(torch.tensor(2.0 + 2.0 * beta, dtype=torch.float64), 1.0).sample(shape).log()


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def moved(kernel: Kernel, start: Tensor, step: float = 0.9, moves: int = 1) -> tuple[State, Tensor]:
    target = Target(log_gamma)
    state, acceptance = target.evaluate(start, kernel.uses_gradient), torch.zeros(())
    for _ in range(moves):
        move = kernel.move(target, state, scalar(BETA), scalar(step), torch.ones_like(start[0]))
        state, acceptance = move.state, move.acceptance
    return state, acceptance


@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_draws_stay_exact_draws(kernel: Kernel) -> None:
    start = draw_log_gamma(BETA, NUM_CHAINS, 2)
    state, acceptance = moved(kernel, start, moves=3)
    assert 0.2 < acceptance.mean() < 0.97  # the accept step matters at this step size
    exact = stats.loggamma(2 + 2 * BETA).cdf
    for column in state.point.T.numpy():
        assert stats.kstest(column, exact).pvalue > 1e-4
    assert not torch.equal(state.point, start)


@pytest.mark.parametrize("kernel", KERNELS)
def test_detailed_balance(kernel: Kernel) -> None:
    """E[a(y) b(y')] = E[b(y) a(y')] for every pair of functions where the chain is reversible."""
    start = draw_log_gamma(BETA, NUM_CHAINS, 2)
    end = moved(kernel, start)[0].point
    for a, b in ((torch.exp, torch.tanh), (torch.square, torch.sin)):
        difference = (a(start) * b(end) - b(start) * a(end)).sum(-1)
        assert difference.mean().abs() < 4 * difference.std() / math.sqrt(NUM_CHAINS)


def test_kernels_forget_a_start_that_was_wrong() -> None:
    for kernel in ADJUSTED:
        point = moved(kernel, scalar(3.0).expand(4000, 2) / 3, moves=60)[0].point
        exact = stats.loggamma(2 + 2 * BETA)
        assert (point.mean(0) - exact.mean()).abs().max() < 5 * exact.std() / math.sqrt(4000)


def test_unadjusted_moves_are_biased_and_their_correction_repairs_it() -> None:
    start = draw_log_gamma(BETA, 200_000, 1)
    move = ULA().move(
        Target(log_gamma), Target(log_gamma).evaluate(start), scalar(BETA), scalar(0.9), scalar(1.0)
    )
    exact = stats.loggamma(2 + 2 * BETA)
    weights, square = move.correction.exp(), (move.state.point[:, 0] - exact.mean()).square()
    assert (square.mean() - exact.var()).abs() > 6 * square.std() / math.sqrt(len(square))
    for error in (weights - 1, weights * (square - exact.var())):
        assert error.mean().abs() < 4 * error.std() / math.sqrt(len(square))


def test_leapfrog_is_reversible_and_preserves_volume() -> None:
    target, beta, stride = (
        Target(log_gamma),
        scalar(BETA),
        scalar(0.3) * torch.ones(2, dtype=torch.float64),
    )
    point, momentum = draw_log_gamma(BETA, 5, 2), torch.randn(5, 2, dtype=torch.float64)
    end, last = leapfrog(target, target.evaluate(point), momentum, beta, stride, 7)
    back, first = leapfrog(target, end, -last, beta, stride, 7)
    torch.testing.assert_close(back.point, point)
    torch.testing.assert_close(-first, momentum)

    def flow(phase: Tensor) -> Tensor:
        state, p = leapfrog(target, target.evaluate(phase[:, :2]), phase[:, 2:], beta, stride, 7)
        return torch.cat([state.point, p], -1)

    centre, h = torch.cat([point, momentum], -1), 1e-5
    columns = [
        (flow(centre + h * e) - flow(centre - h * e)) / (2 * h)
        for e in torch.eye(4, dtype=torch.float64)
    ]
    torch.testing.assert_close(
        torch.linalg.det(torch.stack(columns, -1)), torch.ones(5, dtype=torch.float64)
    )


def test_gradients_of_every_temperature_are_those_of_autodiff() -> None:
    point = torch.randn(3, 4, 2, dtype=torch.float64)
    state = Target(log_gamma).evaluate(point)
    for beta in (0.0, 0.3, 1.0):
        leaf = point.clone().requires_grad_()
        base, tilt = log_gamma(leaf)
        (grad,) = torch.autograd.grad((base + beta * tilt).sum(), leaf)
        torch.testing.assert_close(state.grad(scalar(beta)), grad)
        torch.testing.assert_close(state.log_density(scalar(beta)), (base + beta * tilt).detach())


@pytest.mark.parametrize("at_once", [None, 3])
def test_slopes_are_the_gradients_of_states(at_once: int | None) -> None:
    point, target = torch.randn(7, 4, 2, dtype=torch.float64), Target(log_gamma, at_once)
    for beta in (scalar(0.3), torch.rand(7, 4, dtype=torch.float64)):
        torch.testing.assert_close(target.slope(point, beta), target.evaluate(point).grad(beta))


def test_slopes_that_are_not_finite_are_zero_and_densities_that_overflow_are_zero() -> None:
    target = Target(lambda y: (y.log().sum(-1), (y.exp().exp() - 1).sum(-1)))
    point = torch.tensor([[-1.0], [1e6], [2.0]], dtype=torch.float64)
    assert target.evaluate(point).log_density(scalar(1.0)).isneginf().tolist() == [
        True,
        True,
        False,
    ]
    slope = target.slope(point, scalar(1.0))[:, 0]
    assert slope[1] == 0
    torch.testing.assert_close(slope[2], torch.exp(scalar(2.0) + torch.exp(scalar(2.0))) + 0.5)


def test_pieces_of_chains_give_what_all_at_once_give() -> None:
    point = torch.randn(7, 4, 2, dtype=torch.float64)
    for whole, pieces in zip(
        Target(log_gamma).evaluate(point), Target(log_gamma, 3).evaluate(point), strict=True
    ):
        torch.testing.assert_close(whole, pieces)


def counted(density: Callable) -> tuple[Callable, list[int]]:
    calls: list[int] = []

    def count(point: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(point))
        return density(point)

    return count, calls


def test_a_new_temperature_costs_no_evaluation() -> None:
    density, calls = counted(log_gamma)
    target = Target(density)
    state = target.evaluate(torch.zeros(6, 2))
    for beta in (0.1, 0.5, 0.9):
        state = (
            HMC(num_leapfrog=3, trajectory=math.inf)
            .move(target, state, torch.tensor(beta), torch.tensor(0.1), torch.ones(2))
            .state
        )
    assert calls == [6] * (1 + 3 * 3)


def test_trajectories_take_as_many_steps_as_their_length_needs() -> None:
    density, calls = counted(log_gamma)
    target = Target(density)
    state = target.evaluate(torch.zeros(6, 2))
    for step, expected in ((10.0, 1), (0.5, 3), (0.01, 7)):
        calls.clear()
        HMC(num_leapfrog=7, trajectory=1.2).move(
            target, state, torch.ones(()), torch.tensor(step), torch.ones(2)
        )
        assert len(calls) == expected


def test_acceptance_and_step_sizes_are_each_chains_and_datums_own() -> None:
    widths = torch.tensor([1.0, 0.01])
    target = Target(
        lambda y: (-0.5 * (y / widths.unsqueeze(-1)).square().sum(-1), y.new_zeros(y.shape[:-1]))
    )
    state = target.evaluate(torch.randn(500, 2, 3) * widths.unsqueeze(-1))
    same = HMC().move(target, state, torch.tensor(1.0), torch.tensor(0.1), torch.ones(3))
    assert same.acceptance.shape == (500, 2)
    assert same.acceptance[:, 0].mean() > 0.95 > 0.05 > same.acceptance[:, 1].mean()
    own = HMC().move(target, state, torch.tensor(1.0), 0.1 * widths, torch.ones(3))
    scaled = HMC().move(
        target, state, torch.tensor(1.0), torch.tensor(0.1), widths.unsqueeze(-1).expand(2, 3)
    )
    assert min(own.acceptance[:, 1].mean(), scaled.acceptance[:, 1].mean()) > 0.95


@pytest.mark.parametrize("kernel", [*ADJUSTED, ULA()])
def test_dual_averaging_reaches_the_target_acceptance(kernel: Kernel) -> None:
    target, scale = Target(log_gamma), torch.ones(2, dtype=torch.float64)
    state = target.evaluate(draw_log_gamma(BETA, 300, 4, 2), kernel.uses_gradient)
    steps = DualAveraging.start(torch.full((4,), 0.05, dtype=torch.float64))
    for _ in range(120):
        move = kernel.move(target, state, scalar(BETA), steps.step_size, scale)
        state, steps = move.state, steps.update(move.acceptance.mean(0), kernel.target_acceptance)
    state = target.evaluate(draw_log_gamma(BETA, 3000, 4, 2), kernel.uses_gradient)
    acceptance = kernel.move(target, state, scalar(BETA), steps.final, scale).acceptance.mean(0)
    assert (acceptance - kernel.target_acceptance).abs().max() < 0.06


def test_nudged_steps_follow_a_density_that_narrows() -> None:
    target = Target(lambda y: (-0.5 * y.square().sum(-1), -50.0 * y.square().sum(-1)))
    state, step, seen = target.evaluate(torch.randn(100, 4, 5)), torch.ones(4), []
    for beta in torch.linspace(0, 1, 150):
        move = HMC().move(target, state, beta, step, torch.ones(5))
        state, step = move.state, nudge_step_size(step, move.acceptance.mean(0), 0.65)
        seen.append(move.acceptance.mean())
    assert torch.stack(seen[50:]).sub(0.65).abs().max() < 0.15
    assert 10 * step.max() < 5


def test_densities_that_are_nan_are_never_entered() -> None:
    def half(y: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * y.square().sum(-1), y.sum(-1).log() * 0.0

    target = Target(half)
    for kernel in (HMC(num_leapfrog=2), RandomWalk()):
        state = target.evaluate(torch.rand(2000, 1) + 0.1, kernel.uses_gradient)
        assert target.evaluate(-torch.ones(1, 1)).tilt.item() == -math.inf
        for _ in range(20):
            state = kernel.move(target, state, torch.ones(()), torch.ones(()), torch.ones(1)).state
        assert bool((state.point > 0).all())
        assert stats.kstest(state.point[:, 0].numpy(), stats.halfnorm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
def test_at_temperature_zero_chains_go_where_the_tilt_is_impossible(kernel: Kernel) -> None:
    def cut(point: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * point.square().sum(-1), torch.where(point[..., 0] > 1, 0.0, -torch.inf)

    target, zero, one = (
        Target(cut),
        torch.zeros((), dtype=torch.float64),
        torch.ones((), dtype=torch.float64),
    )
    state = target.evaluate(torch.randn(NUM_CHAINS, 2, dtype=torch.float64), kernel.uses_gradient)
    assert torch.equal(state.log_density(zero), state.base)
    for _ in range(10):
        state = kernel.move(target, state, zero, one, one).state
    share, expected = (
        float((state.point[:, 0] > 1).double().mean()),
        0.5 * math.erfc(math.sqrt(0.5)),
    )
    assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / NUM_CHAINS)


def test_power_of_densities() -> None:
    log_f, beta = torch.tensor([-torch.inf, -torch.inf, -2.0]), torch.tensor([0.0, 0.5, 0.5])
    assert power(log_f, beta).tolist() == [0.0, -torch.inf, -1.0]


def test_scales_of_coordinates() -> None:
    point = torch.randn(4000, 3, 2, dtype=torch.float64) * torch.tensor(
        [0.1, 10.0], dtype=torch.float64
    )
    scale = weighted_scale(point, torch.zeros(4000, 3), torch.ones(3, 2))
    torch.testing.assert_close(
        scale, torch.tensor([[0.1, 10.0]], dtype=torch.float64).expand(3, 2), rtol=0.1, atol=0
    )
    stuck = weighted_scale(torch.ones(10, 1), torch.zeros(10), torch.full((1,), 2.0))
    assert 1.0 < stuck.item() <= 2.0
    half_normal = torch.where(point[..., 0] > 0, 0.0, -torch.inf)
    folded = weighted_scale(point, half_normal, torch.full((3, 2), 0.1))[:, 0]
    torch.testing.assert_close(
        folded, torch.full_like(folded, 0.1 * math.sqrt(1 - 2 / math.pi)), rtol=0.1, atol=0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_leapfrog": 0}, "num_leapfrog is 0"),
        ({"trajectory": 0.0}, "trajectory is 0"),
        ({"jitter": 1.0}, "jitter"),
        ({"target_acceptance": 65}, "0.65"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HMC(**settings)


def mixture(x: Tensor | None = None) -> None:
    """A shared discrete latent and one for each datum, not independent a posteriori."""
    flip = pyro.sample("flip", dist.Bernoulli(0.3))
    with pyro.plate("data", 1 if x is None else len(x)):
        probs = torch.stack([0.2 + 0.5 * flip, 0.5 - 0.3 * flip, 0.3 - 0.2 * flip], -1)
        z = pyro.sample("z", dist.Categorical(probs))
        pyro.sample("x", dist.Normal(z.to(probs.dtype), 1.0), obs=x)


def test_gibbs_visits_values_as_often_as_the_posterior_says() -> None:
    bound = Program(mixture).bind(torch.tensor([0.2, 1.9]))
    kernel, values = Gibbs(bound), {"flip": torch.zeros(4000), "z": torch.zeros(4000, 2)}
    for _ in range(12):
        values = kernel.move(values)
    grid = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0), torch.arange(3.0))
    exact = bound.log_joint({"flip": grid[:, 0], "z": grid[:, 1:]}).total.softmax(0)
    code = values["flip"] * 9 + values["z"][:, 0] * 3 + values["z"][:, 1]
    seen = torch.bincount(code.long(), minlength=18)
    assert (
        stats.chisquare(
            seen.numpy(), exact.double().numpy() / exact.double().sum().item() * 4000
        ).pvalue
        > 1e-4
    )


def test_gibbs_draws_all_data_at_once_where_they_are_independent() -> None:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Binomial(3, 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-1, 4, 6)
    z = Gibbs(Program(model).bind(x)).move({"z": torch.zeros(5000, 6)})["z"]
    k = torch.arange(4.0)
    exact = (
        dist.Binomial(3, 0.5).log_prob(k) + dist.Normal(k, 1.0).log_prob(x.unsqueeze(-1))
    ).softmax(-1)
    seen = torch.stack([(z == value).double().mean(0) for value in k], -1)
    assert ((seen - exact) / (exact * (1 - exact) / 5000).sqrt()).abs().max() < 4.5


def test_gibbs_refuses_what_it_cannot_enumerate() -> None:
    def counts(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def continuous(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="finitely many"):
        Gibbs(Program(counts).bind(torch.zeros(2)))
    with pytest.raises(ValueError, match="no discrete latents"):
        Gibbs(Program(continuous).bind(torch.zeros(2)))
