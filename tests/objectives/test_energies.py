"""Objectives of unnormalised programs against closed forms, enumeration and known parameters."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm import evidence, families, fit
from ppl_dgm.objectives import (
    ContrastiveDivergence,
    EnergyObjective,
    NoiseContrastive,
    PseudoLikelihood,
    RatioMatching,
    ScoreMatching,
)
from ppl_dgm.program import Program


class Quadratic(nn.Module):
    """E(x) = (x - m)^T P (x - m) / 2 - x^T x / 2: with a standard normal base, N(m, P^-1)."""

    def __init__(self, mean: Tensor, precision: Tensor) -> None:
        super().__init__()
        self.mean, self.root = nn.Parameter(mean), nn.Parameter(torch.linalg.cholesky(precision))
        self.constant = nn.Parameter(torch.zeros((), dtype=mean.dtype))

    @property
    def precision(self) -> Tensor:
        return self.root @ self.root.T

    def forward(self, x: Tensor) -> Tensor:
        off = (x - self.mean) @ self.root
        return 0.5 * (off.square().sum(-1) - x.square().sum(-1)) + self.constant


MEAN = torch.tensor([0.5, -1.0]).double()
PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()


def gaussian(mean: Tensor = MEAN, precision: Tensor = PRECISION) -> Program:
    return families.Energy(Quadratic(mean.clone(), precision.clone()), 2).double()


def value(objective: EnergyObjective, program: Program, x: Tensor) -> float:
    return -objective.loss(program.model, program.guide, x) / len(x)


# ---- score matching ------------------------------------------------------------------------------


def gaussian_score_value(x: Tensor) -> Tensor:
    """-(tr of -P + |P (x - m)|^2 / 2) of N(m, P^-1)."""
    return PRECISION.trace() - 0.5 * ((x - MEAN) @ PRECISION).square().sum(-1)


def test_exact_score_matching_is_its_closed_form() -> None:
    x = torch.randn(7, 2, dtype=torch.float64)
    expected = gaussian_score_value(x).mean().item()
    assert value(ScoreMatching(), gaussian(), x) == pytest.approx(expected, rel=1e-12)


def test_the_score_is_that_of_a_net_by_finite_differences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    program, x, step = families.Energy(net, 3).double(), torch.randn(1, 3).double(), 1e-4

    def log_f(point: Tensor) -> float:
        base = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
        return (base.log_prob(point) - net(point)).item()

    steps = step * torch.eye(3).double()
    up, down = ([log_f(x + sign * row) for row in steps] for sign in (1, -1))
    score = [(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]
    trace = sum((a - 2 * log_f(x) + b) / step**2 for a, b in zip(up, down, strict=True))
    expected = -(trace + 0.5 * sum(s**2 for s in score))
    assert value(ScoreMatching(), program, x) == pytest.approx(expected, rel=1e-5)


def test_sliced_score_matching_is_unbiased_for_the_exact_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, dtype=torch.float64).repeat(20_000, 1)
    sliced, exact = value(ScoreMatching("sliced"), gaussian(), x), gaussian_score_value(x[:1])
    spread = 2 * abs(PRECISION[0, 1].item())  # v^T P v = tr P +- 2 P_01
    assert sliced == pytest.approx(exact.item(), abs=4 * spread / math.sqrt(20_000))
    many = value(ScoreMatching("sliced", num_slices=50), gaussian(), x[:400])
    assert many == pytest.approx(exact.item(), abs=4 * spread / math.sqrt(20_000))


def test_denoising_fits_the_blurred_density() -> None:
    """E |sigma s(x + sigma e) + e|^2 / 2 at the blurred data's own score is its least value."""
    torch.manual_seed(0)
    sigma, covariance = 0.7, PRECISION.inverse()
    blurred = (covariance + sigma**2 * torch.eye(2).double()).inverse()
    x = dist.MultivariateNormal(MEAN, covariance).sample((40_000,))
    objective = ScoreMatching("denoising", noise=sigma)
    found = [value(objective, gaussian(MEAN, blurred * factor), x) for factor in (0.8, 1.0, 1.25)]
    least = -0.5 * (2 - sigma**2 * blurred.trace()).item()
    assert found[1] == pytest.approx(least, abs=4 * 0.7 / 200)
    assert found[1] > max(found[0], found[2])


@pytest.mark.parametrize("noise", [torch.tensor([0.5, 2.0]), np.array([0.5, 2.0]), (0.5, 2)])
def test_noise_levels_may_be_any_array(noise: Any) -> None:
    assert ScoreMatching("denoising", noise=noise).noise == (0.5, 2.0)


def test_each_datum_takes_one_of_the_noise_levels() -> None:
    """E |(I - sigma^2 P) e - sigma P (x - m)|^2 / 2, averaged over the levels."""
    torch.manual_seed(0)
    x, levels = torch.randn(1, 2, dtype=torch.float64), (0.3, 0.8)
    shifted, one = (x - MEAN) @ PRECISION, torch.eye(2).double()
    truth = [
        s**2 * shifted.square().sum() + (one - s**2 * PRECISION).square().sum() for s in levels
    ]
    found = value(ScoreMatching("denoising", noise=levels), gaussian(), x.expand(20_000, 2))
    assert found == pytest.approx(-float(sum(truth)) / 4, rel=0.03)


# ---- known exponential families ------------------------------------------------------------------


def fitted(program: Program, x: Tensor, objective: EnergyObjective, steps: int = 200) -> Program:
    adam = partial(torch.optim.Adam, lr=0.05)
    decay = partial(torch.optim.lr_scheduler.LinearLR, start_factor=1, end_factor=0.01)
    schedule = partial(decay, total_iters=steps)
    settings: Any = {"progress": False, "compile": False, "seed": 0}
    fit(program, x, objective, steps=steps, optimizer=adam, schedule=schedule, **settings)
    return program


NOISE = dist.Normal(torch.zeros(2).double(), 1.5).to_event(1)
REAL: dict[str, Callable[[], EnergyObjective]] = {
    "exact": ScoreMatching,
    "sliced": partial(ScoreMatching, "sliced", num_slices=4),
    "ranking": partial(NoiseContrastive, NOISE, 20),
    "binary": partial(NoiseContrastive, NOISE, 20, kind="binary"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_parameters_of_a_gaussian_are_recovered(name: str) -> None:
    """Within five times the maximum likelihood's standard errors, at most twice as wide here."""
    torch.manual_seed(1)
    num_data = 3000
    x = dist.MultivariateNormal(MEAN, precision_matrix=PRECISION).sample((num_data,))
    start = gaussian(torch.zeros(2).double(), torch.eye(2).double())
    net = fitted(start, x, REAL[name]()).model.fn.net  # type: ignore[union-attr]
    bound = 5 * 2 / math.sqrt(num_data)
    assert bool(((net.mean - MEAN).abs() < bound * PRECISION.inverse().diagonal().sqrt()).all())
    scale = (PRECISION.diagonal().outer(PRECISION.diagonal()) + PRECISION.square()).sqrt()
    assert bool(((net.precision - PRECISION).abs() < bound * scale).all())
    if name == "binary":  # the constant has learned to normalise
        total = evidence.Exact()(start, x[:5]).diagnostics["log_partition"]
        assert float(total) == pytest.approx(0.0, abs=0.15)


EDGES = [(i, i + 1) for i in range(16) if i % 4 < 3] + [(i, i + 4) for i in range(12)]


class Ising(nn.Module):
    """E(x) = - sum over the edges of a 4 x 4 grid of J s_i s_j, s = 2 x - 1."""

    def __init__(self, coupling: float) -> None:
        super().__init__()
        self.coupling = nn.Parameter(torch.full((len(EDGES),), coupling, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        s = 2 * x - 1
        left, right = zip(*EDGES, strict=True)
        return -(s[..., list(left)] * s[..., list(right)]) @ self.coupling


def ising_draws(coupling: float, num_draws: int) -> Tensor:
    """Exact draws of the grid, by the probabilities of all 2^16 states."""
    states = torch.tensor(list(product((0.0, 1.0), repeat=16)), dtype=torch.float64)
    probs = (-Ising(coupling)(states)).softmax(0)
    return states[torch.multinomial(probs, num_draws, replacement=True)]


BITS = dist.Bernoulli(torch.full((16,), 0.5).double()).to_event(1)


@pytest.mark.parametrize(
    "objective",
    [
        PseudoLikelihood,
        RatioMatching,
        pytest.param(partial(NoiseContrastive, BITS, 30), marks=pytest.mark.slow),
    ],
)
def test_the_couplings_of_a_grid_are_recovered(objective: Callable[[], EnergyObjective]) -> None:
    """The mean of 24 couplings within its standard error, and each within five of its own."""
    torch.manual_seed(2)
    x = ising_draws(0.3, 3000)
    program = families.Energy(Ising(0.0), 16, base="bernoulli").double()
    found = fitted(program, x, objective(), 100).model.fn.net.coupling  # type: ignore[union-attr]
    error = 1 / math.sqrt(3000)  # of one coupling, at least
    assert found.mean().item() == pytest.approx(0.3, abs=5 * error / math.sqrt(6))
    assert bool(((found - 0.3).abs() < 5 * 2 * error).all())


def test_pseudo_likelihood_is_the_sum_of_conditionals() -> None:
    torch.manual_seed(0)
    rbm = families.RBM(4, 3).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.add_(torch.randn_like(parameter))
    states = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    probs = (-rbm.free_energy(states)).softmax(0).reshape(2, 2, 2, 2)
    x = states[[3, 9, 12]]
    total = torch.zeros(()).double()
    ratio = torch.zeros(()).double()
    for row in x.long().tolist():
        for d in range(4):
            index = [*row[:d], slice(None), *row[d + 1 :]]
            line = probs[tuple(index)]
            conditional = line[row[d]] / line.sum()
            total += conditional.log() / len(x)
            ratio -= (1 - conditional).square() / len(x)
    assert value(PseudoLikelihood(), rbm, x) == pytest.approx(total.item(), rel=1e-10)
    assert value(RatioMatching(), rbm, x) == pytest.approx(ratio.item(), rel=1e-10)


def test_noise_may_be_a_program() -> None:
    """A density that equals its noise is told from it by chance alone: log 1 / (K + 1)."""
    made = families.Mixture(2, 2)
    x = torch.randn(6, 2)
    program = families.Energy(lambda v: v.square().sum(-1) * 0.0, 2, base=NOISE_FLOAT)
    assert value(NoiseContrastive(NOISE_FLOAT, 4), program, x) == pytest.approx(-math.log(5))
    assert math.isfinite(value(NoiseContrastive(made, 4), program, x))


NOISE_FLOAT = dist.Normal(torch.zeros(2), 1.5).to_event(1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ScoreMatching("wrong"),  # type: ignore[arg-type]
            ValueError,
            "kind is 'wrong'; expected one of",
        ),
        (lambda: ScoreMatching("denoising", noise=0.0), ValueError, "expected positive"),
        (lambda: ScoreMatching("denoising", noise=[]), ValueError, "expected positive"),
        (lambda: ScoreMatching(num_slices=0), ValueError, "num_slices"),
        (lambda: NoiseContrastive(None), TypeError, "noise is a NoneType"),
        (lambda: NoiseContrastive(NOISE, 0), ValueError, "num_noise"),
        (
            lambda: NoiseContrastive(NOISE, kind="three"),  # type: ignore[arg-type]
            ValueError,
            "kind is 'three'",
        ),
        (
            lambda: value(NoiseContrastive(dist.Normal(0.0, 1.0)), gaussian(), MEAN.expand(3, 2)),
            ValueError,
            "expected \\[\\] and the data's",
        ),
        (
            lambda: value(ScoreMatching(), families.RBM(2, 2), torch.ones(3, 2)),
            ValueError,
            "ScoreMatching takes real data",
        ),
        (
            lambda: value(PseudoLikelihood(), gaussian(), MEAN.expand(3, 2)),
            ValueError,
            "PseudoLikelihood takes binary data",
        ),
    ],
)
def test_bad_input_is_refused(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


COMPILED: dict[str, tuple[Callable[[], Program], Callable[[], EnergyObjective]]] = {
    "exact": (gaussian, ScoreMatching),
    "denoising": (gaussian, partial(ScoreMatching, "denoising", noise=(0.1, 0.5))),
    "noise": (gaussian, partial(NoiseContrastive, NOISE, 3)),
    "pseudo": (partial(families.RBM, 4, 2), PseudoLikelihood),
}


NUMBERS: dict[str, tuple[Callable[[], EnergyObjective], Any]] = {
    "exact": (ScoreMatching, dist.Normal(0.5, 2.0)),
    "sliced": (partial(ScoreMatching, "sliced"), dist.Normal(0.5, 2.0)),
    "denoising": (partial(ScoreMatching, "denoising"), dist.Normal(0.5, 2.0)),
    "real chains": (partial(ContrastiveDivergence, 2), dist.Normal(0.5, 2.0)),
    "binary chains": (partial(ContrastiveDivergence, 2), dist.Bernoulli(0.3)),
    "pseudo-likelihood": (PseudoLikelihood, dist.Bernoulli(0.3)),
    "ratio matching": (RatioMatching, dist.Bernoulli(0.3)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_data_may_be_numbers(name: str) -> None:
    """As vectors of one number are."""
    make, law = NUMBERS[name]
    torch.manual_seed(0)
    x, found = law.sample(torch.Size((20,))), []
    for data, event in ((x, law), (x.unsqueeze(1), law.expand([1]).to_event(1))):

        def model(x: Tensor, event: Any = event) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", event, obs=x)

        torch.manual_seed(1)
        found.append(value(make(), Program(model), data))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_fits_equal_eager_ones(name: str) -> None:
    make, objective = COMPILED[name]
    x = torch.randn(20, 2).double() if make is gaussian else torch.bernoulli(torch.rand(20, 4))
    ends = []
    for mode in (False, True):
        torch.manual_seed(0)
        program = make()
        fit(program, x, objective(), steps=6, compile=mode, progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in program.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)


class Dropped(nn.Module):
    """A factor in training under dropout, and running statistics: neither depends on the data."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.weights = nn.Parameter(torch.ones(20))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        if self.training:
            self.calls += 1
            pyro.factor("penalty", -self.dropout(self.weights).square().sum() - self.calls)


def test_dropout_and_running_statistics_are_no_energies():
    result = fit(Program(Dropped()), torch.randn(8), steps=2, compile=False, progress=False)
    assert result.steps == 2
