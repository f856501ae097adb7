"""Flows fitted to densities: closed forms of both divergences, distillation, what is refused."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_dgm import Program, fit
from ppl_dgm.evidence import Exact
from ppl_dgm.families import IAF, MAF, Energy, Flow, WaveNet, likelihoods
from ppl_dgm.objectives import ForwardKL, Objective, ReverseKL
from ppl_dgm.transforms import ActNorm, Coupling, Elementwise, FlowDistribution, Planar

MEAN, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
TARGET = dist.Normal(MEAN, SCALE).to_event(1)


SEEDED: dict[str, Any] = {"seed": 0, "compile": False}


def noise(size: int) -> Any:
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def affine(size: int = 2, num_context: int = 0) -> Flow:
    torch.manual_seed(0)
    return Flow(noise(size), [Elementwise((size,), num_context=num_context, hidden=[8])])


def law(flow: Flow) -> dist.Normal:
    """The normal distribution that an affine flow is."""
    zero = flow.from_latents(torch.zeros(1, 2))[0].detach()
    return dist.Normal(zero, flow.from_latents(torch.ones(1, 2))[0].detach() - zero)


def value(objective: Objective, flow: Flow, num: int = 4000) -> float:
    torch.manual_seed(1)
    return -objective.loss(flow.model, flow.guide, torch.zeros(num, 2)) / num


def quickly(flow: Any, data: Any, objective: Objective, steps: int = 200) -> Any:
    rate = lambda parameters: torch.optim.Adam(parameters, 0.05)  # noqa: E731
    return fit(flow, data, objective, steps=steps, optimizer=rate, progress=False, **SEEDED)


def test_the_value_is_minus_the_divergence() -> None:
    flow = affine()
    kl = float(kl_divergence(law(flow), TARGET.base_dist).sum())
    spread = 3.0 / 4000**0.5
    assert value(ReverseKL(TARGET), flow) == pytest.approx(-kl, abs=4 * spread)
    scaled = ReverseKL(lambda x: TARGET.log_prob(x) + 1.5)
    assert value(scaled, flow) == pytest.approx(1.5 - kl, abs=4 * spread)


@pytest.mark.parametrize("kind", [ReverseKL, pytest.param(ForwardKL, marks=pytest.mark.slow)])
def test_an_unnormalised_target_is_fitted_and_its_constant_found(kind: type[Any]) -> None:
    flow, log_f = affine(), lambda x: TARGET.log_prob(x) + 1.5
    quickly(flow, torch.zeros(64, 2), kind(log_f, 8))
    torch.testing.assert_close(law(flow).loc, MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(law(flow).scale, SCALE, atol=0.2, rtol=0)
    assert value(ReverseKL(log_f), flow) == pytest.approx(1.5, abs=0.02)


@pytest.mark.slow
def test_one_direction_keeps_to_a_mode_and_the_other_covers_both() -> None:
    def log_f(x: Tensor) -> Tensor:
        return torch.logaddexp(-2 * (x - 3) ** 2, -2 * (x + 3) ** 2).sum(-1)

    found = {}
    for kind in (ReverseKL, ForwardKL):
        flow = Flow(dist.Normal(torch.full((1,), 2.0), 3.0).to_event(1), [Elementwise((1,))])
        quickly(flow, torch.zeros(128, 1), kind(log_f, 4))
        draws = flow.sample(4000)
        found[kind] = float(draws.mean().abs()), float(draws.std())
    assert found[ReverseKL] == pytest.approx((3.0, 0.5), abs=0.1)
    assert found[ForwardKL] == pytest.approx((0.0, 9.25**0.5), abs=0.3)


@pytest.mark.slow
def test_an_energy_is_a_target() -> None:
    """Its base is a standard normal, so that precisions 2 and 1 add up."""
    energy = Energy(lambda x: (x - MEAN).square().sum(-1), 2)
    flow = affine()
    quickly(flow, torch.zeros(64, 2), ReverseKL(energy, 4))
    torch.testing.assert_close(law(flow).loc, 2 * MEAN / 3, atol=0.1, rtol=0)
    torch.testing.assert_close(law(flow).scale, torch.full((2,), 3**-0.5), atol=0.1, rtol=0)


@pytest.mark.slow
def test_a_teacher_with_covariates_is_given_those_of_the_data() -> None:
    teacher, student = affine(num_context=1), affine(num_context=1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3.0).add_(0.3)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    context = torch.linspace(-2, 2, 64).unsqueeze(-1)
    for objective in (ReverseKL(teacher, 4), ForwardKL(teacher, 16)):
        quickly(student, (torch.zeros(64, 2), context), objective, steps=300)
        x, log_q = student.distribution(context).expand((64,)).rsample_and_log_prob((500,))
        gap = (log_q - teacher.distribution(context).log_prob(x)).mean()
        assert gap.item() < 0.05
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())


@pytest.mark.slow
def test_a_student_is_as_good_as_its_teacher() -> None:
    torch.manual_seed(0)
    bend = torch.randn(2000, 8)
    x = torch.cat([bend[:, :4], 0.5 * bend[:, :4] ** 2 + 0.3 * bend[:, 4:]], -1)
    teacher, student = MAF(8, 3, [32]), IAF(8, 3, [32])
    fit(teacher, x, epochs=20, progress=False)
    rate = lambda parameters: torch.optim.Adam(parameters, 5e-3)  # noqa: E731
    fit(
        student,
        teacher.sample(2000),
        ReverseKL(teacher),
        epochs=60,
        optimizer=rate,
        batch_size=128,
        progress=False,
    )
    draws, log_q = student.distribution().rsample_and_log_prob((4000,))
    gap = (log_q - teacher.distribution().log_prob(draws)).mean() / 8
    assert 0 < gap.item() < 0.1


@pytest.mark.slow
def test_a_wavenet_is_a_teacher() -> None:
    torch.manual_seed(0)
    now, steps = torch.zeros(1000), []
    for _ in range(8):
        now = 0.8 * now + (0.3 + 0.3 * now.tanh().abs()) * torch.randn(1000)
        steps.append(now)
    teacher = WaveNet(8, 8, likelihood=likelihoods.Gaussian(learned="net"))
    student = IAF(8, 2, [32])
    options = {"batch_size": 100, "progress": False, **SEEDED}
    rate = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
    fit(teacher, torch.stack(steps, -1), steps=150, optimizer=rate, **options)
    start = teacher.sample(1000)
    fit(student, start, ReverseKL(teacher), steps=200, optimizer=rate, **options)
    draws, log_q = student.distribution().rsample_and_log_prob((2000,))
    gap = (log_q - Exact()(teacher, draws.detach()).log_z).mean() / 8
    assert 0 < gap.item() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ReverseKL, ForwardKL])
def test_compiled_fits_equal_eager_ones(kind: type[Any]) -> None:
    found = []
    for mode in (True, False):
        torch.manual_seed(0)
        flow = Flow(noise(2), [Coupling(2), Coupling(2, flipped=True)])
        result = fit(
            flow, torch.zeros(32, 2), kind(TARGET), steps=5, seed=0, progress=False, compile=mode
        )
        found.append(torch.as_tensor(result.history["objective"]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3)])
def test_draws_come_with_their_density(sample_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    steps = [Coupling(4), ActNorm((4,)), Planar(4)]
    one = FlowDistribution(noise(4), steps).expand((3,))
    whole = FlowDistribution(dist.Normal(torch.zeros(3, 4), 1.0), steps)
    for flow in (one, whole):
        x, log_p = flow.rsample_and_log_prob(sample_shape)
        assert log_p.shape == (*sample_shape, 3)
        torch.testing.assert_close(log_p, flow.log_prob(x), atol=1e-4, rtol=1e-4)


class Own(nn.Module):
    """A normal whose mean is the number before."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor | None = None) -> None:
        x = torch.zeros(1, 2) if x is None else x
        with pyro.plate("data", len(x)):
            mean = torch.stack([torch.zeros_like(x[:, 0]), self.slope * x[:, 0]], -1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def coins(x: Tensor | None = None) -> None:
    p = pyro.param("p", torch.full((2,), 0.5), constraint=dist.constraints.unit_interval)
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)


WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no density": (affine, 3.0, TypeError, "target is a float; expected a Program"),
    "no event": (affine, dist.Normal(MEAN, SCALE), ValueError, r"declare event dimensions"),
    "a sum": (affine, lambda x: x.sum(), (ValueError, RuntimeError), "shape|log densities"),
    "coins": (lambda: Program(coins), TARGET, ValueError, "no gradient in the parameters"),
    "own data": (lambda: Program(Own()), TARGET, ValueError, "depends on the data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_fitted_is_refused(name: str) -> None:
    make, target, error, message = WRONG[name]
    x = (torch.randn(8, 2) > 0).float()
    with pytest.raises(error, match=message):
        quickly(make(), x, ReverseKL(target), steps=1)


@pytest.mark.slow
def test_the_bound_of_a_wide_target_is_its_constant() -> None:
    """log of the integral of exp(-|x| / 2) in two dimensions is 2 log 4."""
    flow = Flow(noise(2), [Elementwise((2,))])
    quickly(flow, torch.zeros(64, 2), ReverseKL(lambda x: -x.abs().sum(-1) / 2, 8))
    found = value(ReverseKL(lambda x: -x.abs().sum(-1) / 2), flow, 20_000)
    assert 2 * math.log(4) - 0.3 < found < 2 * math.log(4) + 0.02
