"""Data that some values of the latents rule out: zero density there, and the right evidence."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor

from ppl_dgm import Program, evidence
from ppl_dgm.program.supports import in_support

FLOAT = torch.float64


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=FLOAT)


@pytest.mark.parametrize(
    ("fn", "value", "expected"),
    [
        (dist.Normal(torch.zeros(2), 1.0), torch.zeros(2), None),
        (
            dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).expand([3]),
            torch.zeros(3, 2),
            None,
        ),
        (dist.Bernoulli(torch.ones(2)), torch.zeros(2), None),
        (dist.Exponential(torch.ones(2)), torch.tensor([-1.0, 1.0]), [False, True]),
        (
            dist.Exponential(torch.ones(2, 2)).to_event(1),
            torch.tensor([[-1.0, 1.0], [1.0, 2.0]]),
            [False, True],
        ),
        (dist.Uniform(torch.tensor([0.0, 2.0]), 3.0), torch.ones(2), [True, False]),
        (dist.Pareto(torch.tensor([0.5, 2.0]), 1.0), torch.ones(2), [True, False]),
        (dist.Weibull(1.0, torch.tensor([2.0, 2.0])), torch.tensor([-1.0, 1.0]), [False, True]),
        (
            dist.TransformedDistribution(
                dist.Exponential(torch.ones(2)), [AffineTransform(torch.tensor([0.0, 2.0]), 1.0)]
            ),
            torch.ones(2),
            [True, False],
        ),
        (
            dist.TransformedDistribution(
                dist.Gamma(torch.ones(2, 3), 1.0).to_event(1), [AffineTransform(1.0, 2.0)]
            ),
            torch.tensor([[2.0, 2.0, 0.5], [2.0, 2.0, 2.0]]),
            [False, True],
        ),
        (
            dist.TransformedDistribution(
                dist.Normal(torch.zeros(2), 1.0), [AffineTransform(1.0, 2.0)]
            ),
            torch.zeros(2),
            None,
        ),
        (
            dist.Dirichlet(torch.ones(2, 3)),
            torch.tensor([[0.5, 0.25, 0.25], [1.5, -0.25, -0.25]]),
            [True, False],
        ),
    ],
)
def test_supports_are_read_through_wrappers_and_transforms(fn, value, expected):
    inside = in_support(fn, value)
    assert (inside if inside is None else inside.tolist()) == expected


def shifted(x: Tensor) -> None:
    """x = z + Exponential(1), z normal: an exponentially modified Gaussian."""
    z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
    pyro.sample(
        "x",
        dist.TransformedDistribution(dist.Exponential(number(1.0)), [AffineTransform(z, 1.0)]),
        obs=x,
    )


def subtracted(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
    pyro.sample("x", dist.Exponential(number(1.0)), obs=x - z)


def pareto(x: Tensor) -> None:
    """Pareto(scale z, 2) below Uniform(0.5, 3).

    p(x) is the integral of 2 z^2 x^-3 over z < min(x, 3), over 2.5.
    """
    z = pyro.sample("z", dist.Uniform(number(0.5), 3.0))
    pyro.sample("x", dist.Pareto(z, number(2.0)), obs=x)


def modified_gaussian(x: float) -> float:
    return math.log(0.5 * math.exp(0.5 - x) * math.erfc((1 - x) / math.sqrt(2)))


def pareto_marginal(x: float) -> float:
    return math.log(2 / x**3 * (min(x, 3.0) ** 3 - 0.125) / 3 / 2.5)


@pytest.mark.parametrize(
    ("model", "truth"),
    [(shifted, modified_gaussian), (subtracted, modified_gaussian), (pareto, pareto_marginal)],
)
def test_evidence_of_data_that_latents_may_rule_out(model, truth):
    for seed, x in enumerate((0.8, 1.7, 0.8)):  # whatever is drawn first, the program is taken
        result = evidence.PriorSampling(20_000)(Program(model), number(x), seed=seed)
        assert (result.log_z - truth(x)).abs() < 4.5 * result.std_error, result
        assert result.std_error < 0.1


@pytest.mark.parametrize(("model", "truth"), [(shifted, modified_gaussian)])
def test_chains_stay_where_the_data_are_possible(model, truth):
    result = evidence.SMC(num_particles=300)(Program(model), number(1.7), seed=0)
    assert (result.log_z - truth(1.7)).abs() < 4.5 * result.std_error
    assert result.std_error < 0.1


@pytest.mark.parametrize("by_handler", [True, False])
def test_masked_data_are_ruled_out_by_nothing(by_handler):
    """Of Exponential(1) above z ~ Uniform(0, 1), seen at 2 and 3: p(x) = (e^2 - 1) / 2 e^5."""
    seen = torch.tensor([True, True, False])

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(number(0.0), 1.0))
        fn = dist.TransformedDistribution(
            dist.Exponential(torch.ones_like(x)), [AffineTransform(z, 1.0)]
        )
        with pyro.plate("data", 3), pyro.poutine.mask(mask=seen if by_handler else True):
            pyro.sample("x", fn if by_handler else fn.mask(seen), obs=x)

    result = evidence.PriorSampling(20_000)(
        Program(model), torch.tensor([2.0, 3.0, -5.0]).double(), seed=0
    )
    assert (result.log_z - math.log((math.exp(2) - 1) / 2) + 5).abs() < 4.5 * result.std_error
    assert result.std_error < 0.01


def test_supports_that_move_by_a_coin_are_taken_whatever_it_shows():
    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(number(0.5)))
            pyro.sample("x", dist.Uniform(z, z + 1.0), obs=x)

    for seed in range(40):
        torch.manual_seed(seed)
        Program(model).initialise(torch.tensor([0.2, 0.4]).double())


def test_data_outside_a_support_that_does_not_move_are_refused():
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Gamma(z.exp(), number(1.0)), obs=x)

    with pytest.raises(ValueError, match=r"'x' observes values outside the support .*Gamma"):
        Program(model).initialise(number(-1.0))


# ---- mixtures by a mask --------------------------------------------------------------------------


COUNTS = torch.tensor([0.0, 1.0, 0.0, 2.0])
SHARES, RATES = torch.tensor([0.3, 0.7]), torch.tensor([1.0, 3.0])


def inflated(component: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """A mixture whose components are another in each state, and a point at zero."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            on = {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(SHARES), infer=on)
            at = dist.MaskedMixture(x == 0, component(RATES[k]), dist.Delta(torch.tensor(0.0)))
            pyro.sample("x", at, obs=x)

    return model


@pytest.mark.parametrize(
    "component",
    [
        lambda rate: dist.Gamma(2.0, rate),
        lambda rate: dist.Normal(rate, 1.0),
        dist.Poisson,
        lambda rate: dist.Uniform(0.0, rate),
    ],
    ids=["Gamma", "Normal", "Poisson", "Uniform"],
)
def test_masked_mixtures_are_summed_out(component: Callable[[Tensor], Any]) -> None:
    """Data of zero are of the point; each of the others is of a state that allows it."""

    def density(i: int, value: Tensor) -> Tensor:
        at = component(RATES[i])
        at._validate_args = False
        return at.log_prob(value)

    states = torch.stack([SHARES[i].log() + density(i, COUNTS[[1, 3]]) for i in (0, 1)])
    one, two = torch.logsumexp(states, 0).tolist()
    log_z = evidence.Exact()(Program(inflated(component)), COUNTS).log_z
    assert log_z.tolist() == pytest.approx([0.0, one, 0.0, two], abs=1e-5)


def test_supports_of_masked_mixtures_are_those_of_their_components() -> None:
    mask = torch.tensor([True, False])
    positive, unit = dist.Exponential(torch.ones(2)), dist.Uniform(torch.zeros(2), 1.0)
    at = dist.MaskedMixture(mask, positive, unit)
    assert in_support(at, number(2.0)).tolist() == [False, True]
    assert (
        in_support(at.expand([3, 2]).to_event(1), number(0.5).expand(3, 2)).tolist() == [True] * 3
    )
    real = dist.MaskedMixture(
        mask, dist.Normal(torch.zeros(2), 1.0), dist.Cauchy(torch.zeros(2), 1.0)
    )
    assert in_support(real, number(-2.0)) is None


class Overflowing(dist.Normal):
    """A normal distribution whose draws overflow to NaN, as a flow's may in its tails."""

    def sample(self, *args, **kwargs):
        return torch.full_like(super().sample(*args, **kwargs), torch.nan)


def test_priors_that_overflow_are_not_blamed_on_the_guide():
    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", Overflowing(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert Program(model, guide).bind(torch.zeros(3)).structure.latents[0].name == "z"
