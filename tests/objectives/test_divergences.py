"""f-divergences in closed form between Gaussians, duality, Jensen-Shannon as a metric.

Duality is Fenchel's.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_dgm.objectives import Divergence, alpha_divergence, named_divergence
from ppl_dgm.objectives.divergences import DIVERGENCES

P, Q = Normal(torch.tensor(0.3).double(), 1.0), Normal(torch.tensor(-0.4).double(), 1.0)
SHIFT = 0.7  # of the means, in standard deviations
GRID = torch.linspace(-15.0, 15.0, 30001, dtype=torch.float64)
STEP = GRID[1] - GRID[0]
ALPHAS = (-0.5, 0.5, 0.75, 1.5, 2.0, 3.0)
ALL: dict[str, Callable[[], Divergence]] = {name: DIVERGENCES[name] for name in DIVERGENCES} | {
    f"alpha={alpha}": partial(alpha_divergence, alpha) for alpha in ALPHAS
}


def power_integral(alpha: float) -> float:
    """The integral of p^alpha q^(1 - alpha), exp(alpha (alpha - 1) shift^2 / 2)."""
    return math.exp(alpha * (alpha - 1) * SHIFT**2 / 2)


def jensen_shannon() -> float:
    """By quadrature of its definition."""
    p, q = P.log_prob(GRID), Q.log_prob(GRID)
    middle = torch.logaddexp(p, q) - math.log(2)
    return float(((p.exp() * (p - middle)).sum() + (q.exp() * (q - middle)).sum()) * STEP / 2)


CLOSED: dict[str, float] = {
    "kl": SHIFT**2 / 2,
    "reverse_kl": SHIFT**2 / 2,
    "js": jensen_shannon(),
    "gan": 2 * jensen_shannon(),
    "hellinger": 2 - 2 * math.exp(-(SHIFT**2) / 8),
    "pearson": math.exp(SHIFT**2) - 1,
    "total_variation": math.erf(SHIFT / 2 / math.sqrt(2)),
} | {f"alpha={a}": (power_integral(a) - 1) / (a * (a - 1)) for a in ALPHAS}


def bound(divergence: Divergence, outputs: Tensor) -> float:
    """E_p T - E_q f*(T) on the grid, of a critic's outputs there."""
    gained = P.log_prob(GRID).exp() * divergence.activation(outputs)
    paid = Q.log_prob(GRID).exp() * divergence.penalty(outputs)
    return float((gained - paid).sum() * STEP)


def best_outputs(divergence: Divergence) -> Tensor:
    """Outputs with a(v) = f'(p / q), by bisection."""
    ratio = (P.log_prob(GRID) - Q.log_prob(GRID)).exp().requires_grad_()
    (slope,) = torch.autograd.grad(divergence.f(ratio).sum(), ratio)
    low, high = torch.full_like(GRID, -60.0), torch.full_like(GRID, 60.0)
    if divergence.activation(high[:1]) == high[:1]:
        return slope
    for _ in range(80):
        middle = (low + high) / 2
        below = divergence.activation(middle) < slope
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("name", ALL)
def test_the_bound_of_the_best_critic_is_the_divergence(name: str) -> None:
    divergence = ALL[name]()
    assert bound(divergence, best_outputs(divergence)) == pytest.approx(CLOSED[name], rel=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_other_critics_are_below(name: str) -> None:
    divergence = ALL[name]()
    best = best_outputs(divergence)
    for change in (best * 0.5, best + 0.2, GRID * 0.1, torch.zeros_like(GRID)):
        assert bound(divergence, change) < CLOSED[name]


@pytest.mark.parametrize("name", ALL)
def test_divergences_of_mass_functions(name: str) -> None:
    """Those of two Gaussians cut to fine cells; zero between equals."""
    p, q = (law.log_prob(GRID[9000:21001:20]).exp() for law in (P, Q))
    divergence = ALL[name]()
    assert divergence.between(p / p.sum(), q / q.sum()).item() == pytest.approx(
        CLOSED[name], rel=1e-4
    )
    assert divergence.between(q / q.sum(), q / q.sum()).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_composed_penalties_do_not_overflow(name: str) -> None:
    """In single precision, at scores that a critic reaches in training."""
    divergence = ALL[name]()
    scores = torch.tensor([-25.0, -18.0, 0.0, 18.0, 25.0])
    assert bool(divergence.penalty(scores).isfinite().all())
    assert bool(divergence.activation(scores).isfinite().all())


def test_the_value_of_the_first_gan_is_twice_jensen_shannon_less_log_4() -> None:
    p, q = P.log_prob(GRID), Q.log_prob(GRID)
    judged = torch.sigmoid(p - q)  # p / (p + q)
    value = (p.exp() * judged.log() + q.exp() * (-judged).log1p()).sum() * STEP
    assert value.item() == pytest.approx(2 * CLOSED["js"] - math.log(4), rel=1e-6)


def test_jensen_shannon_is_symmetric_and_its_root_a_metric() -> None:
    js = named_divergence("js")
    p, q, r = torch.distributions.Dirichlet(torch.full((5,), 0.4).double()).sample((3, 2000))
    tiny = 1e-12
    p, q, r = ((one + tiny) / (one + tiny).sum(-1, keepdim=True) for one in (p, q, r))
    assert torch.allclose(js.between(p, q), js.between(q, p), atol=1e-9)
    sides = [js.between(*pair).clamp_min(0).sqrt() for pair in ((p, q), (q, r), (p, r))]
    assert bool((sides[2] <= sides[0] + sides[1] + 1e-9).all())
    squares = [side.square() for side in sides]
    assert not bool((squares[2] <= squares[0] + squares[1]).all())  # without the root it is none
    assert js.between(p, q).max().item() <= math.log(2) + 1e-9


@pytest.mark.parametrize("alpha", [0.9, 0.9999, 1.0001, 1.1])
def test_alphas_near_one_are_nearly_kl_in_single_precision(alpha: float) -> None:
    """f goes to u log u - (u - 1) and its conjugate to e^t - 1, of an output v = t."""
    p, q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.35, 0.25])
    found, near = alpha_divergence(alpha), abs(alpha - 1)
    kl = named_divergence("kl").between(p, q).item()
    assert found.between(p, q).item() == pytest.approx(kl, rel=near + 1e-4)
    v = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0])
    assert torch.allclose(found.activation(v), v, atol=0.5 * near + 1e-6)
    assert torch.allclose(found.penalty(v), v.expm1(), atol=2 * near + 1e-6)


def test_alphas_near_zero_are_nearly_reverse_kl_in_single_precision() -> None:
    p, q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.35, 0.25])
    truth = named_divergence("reverse_kl").between(p, q).item()
    for alpha in (-1e-6, 1e-6):
        assert alpha_divergence(alpha).between(p, q).item() == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("alpha", [-9.0, -2.0, 5.0, 10.0])
def test_far_alphas_are_divergences(alpha: float) -> None:
    p, q = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    truth = ((q * (p / q) ** alpha).sum() - 1) / (alpha * (alpha - 1))
    assert alpha_divergence(alpha).between(p, q).item() == pytest.approx(truth.item(), rel=1e-9)
    v = torch.zeros(3, requires_grad=True)
    alpha_divergence(alpha).penalty(v - 40.0).sum().backward()
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


# ---- divergences of a user's own -----------------------------------------------------------------


def triangular(**changes: Callable) -> Divergence:
    """f(u) = (u - 1)^2 / (u + 1), of Vincze (1981) and Le Cam (1986)."""
    parts: dict[str, Callable] = {
        "f": lambda u: (u - 1) ** 2 / (u + 1),
        "conjugate": lambda t: 4 - 4 * (1 - t).sqrt() - t,
        "activation": lambda v: 1 - 4 * torch.sigmoid(-v),
    }
    return Divergence("triangular", **parts | changes)


def test_a_divergence_of_ones_own() -> None:
    """f'(u) = 1 - 4 / (u + 1)^2.

    So u + 1 = 2 / sqrt(1 - t) and f*(t) = 4 - 4 sqrt(1 - t) - t.
    """
    p, q = P.log_prob(GRID).exp(), Q.log_prob(GRID).exp()
    truth = float(((p - q) ** 2 / (p + q).clamp_min(1e-300)).sum() * STEP)
    divergence = triangular()
    assert bound(divergence, best_outputs(divergence)) == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f": lambda u: (u - 1) ** 2 / (u + 1) + 0.5}, r"f\(1\) is 0.5 .*Subtract 0.5 from f"),
        ({"f": lambda u: -((u - 1) ** 2)}, "is not convex near .*-f convex"),
        ({"f": lambda u: torch.sin(u - 1)}, "is not convex near"),
        ({"f": lambda u: (u - 1).abs().sqrt()}, "is not convex near"),
        ({"conjugate": lambda t: 4 - 4 * (1 - t).sqrt()}, "conjugate of the conjugate .* f is"),
        ({"activation": lambda v: 1 - 4 * torch.sigmoid(-v) / 8}, "conjugate of the conjugate"),
        (
            {"conjugate": lambda t: 4.001 - 4 * (1 - t).sqrt() - t},
            "conjugate of the conjugate .* at 1, where f is",
        ),
        ({"composed": lambda v: v}, "composed .* is not its conjugate"),
        (
            {"composed": lambda v: triangular().penalty(v.clamp(-9.0, 9.0))},
            "composed .* is not its conjugate",
        ),
        ({"f": lambda u: 0.0 if u.dim() else u - 1}, r"f of .* maps \[61\] to float; expected"),
    ],
)
def test_what_is_no_divergence_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triangular(**changes)


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="divergence is 'tv'; expected one of .*'total_variation'"):
        named_divergence("tv")
    with pytest.raises(TypeError, match="divergence is a float; expected a Divergence or one of"):
        named_divergence(0.5)
    for alpha in (0.0, 1.0, 11.0, -9.5, math.inf):
        with pytest.raises(ValueError, match="alpha is .*; expected a .*number"):
            alpha_divergence(alpha)
