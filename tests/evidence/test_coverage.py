"""Coverage of 95 % intervals over two hundred seeds.

Targets are normal, skewed, heavy-tailed and bimodal.

Seeds are data: one datum is repeated, so that every estimator that is per datum gives all its
replicates in one call.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import (
    JVI,
    SUMO,
    BridgeSampling,
    Estimator,
    ImportanceSampling,
    Laplace,
    LearnedHarmonicMean,
    auto,
)
from ppl_dgm.sampling.convergence import widened_by_skew
from ppl_dgm.sampling.weight_summary import WeightSummary

FLOAT = torch.float64
SEEDS = 200


def zero() -> Tensor:
    return torch.zeros((), dtype=FLOAT)


def normal(z: Tensor) -> Tensor:
    return dist.Normal(zero() + 1.0, 0.7).log_prob(z)


def skewed(z: Tensor) -> Tensor:
    """log of a Gamma(4, 2) variable."""
    return 4 * z - 2 * z.exp() + 4 * math.log(2) - math.lgamma(4)


def heavy(z: Tensor) -> Tensor:
    return dist.StudentT(3.0, zero(), 1.0).log_prob(z)


def bimodal(z: Tensor) -> Tensor:
    left, right = (
        dist.Normal(zero() - 2.5, 0.7).log_prob(z),
        dist.Normal(zero() + 2.5, 1.0).log_prob(z),
    )
    return torch.logaddexp(left + math.log(0.4), right + math.log(0.6))


TARGETS = {"normal": normal, "skewed": skewed, "heavy": heavy, "bimodal": bimodal}


def program(target: Callable[[Tensor], Tensor]) -> Program:
    """A factor for each datum that makes the joint density that of the target.

    Every evidence is 1.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            reference = dist.StudentT(2.5, x, 4.0)
            z = pyro.sample("z", reference)
            pyro.factor("target", target(z) - reference.log_prob(z))

    return Program(model)


ESTIMATORS: dict[str, Estimator] = {
    "ImportanceSampling": ImportanceSampling(num_particles=1000),
    "JVI": JVI(num_particles=128, num_replicates=64),
    "SUMO": SUMO(num_particles=16, num_replicates=400),
    "Laplace": Laplace(num_particles=1000),
    "BridgeSampling": BridgeSampling(num_chains=32, num_draws=60),
    "BridgeSampling, warp-3": BridgeSampling(num_chains=32, num_draws=60, proposal="warp3"),
    "LearnedHarmonicMean": LearnedHarmonicMean(num_chains=32, num_draws=100),
}


def test_skewed_weights_fall_short_no_oftener_than_normal_variables() -> None:
    """Means of 500 log-normal weights, more than three standard errors too low.

    27 of 20 000 normal variables are, and 86 of the means if errors are not widened.
    """
    summary = WeightSummary(500)
    summary.add(torch.randn(500, 20_000, generator=torch.Generator().manual_seed(0)))
    off = summary.log_mean_exp - 0.5
    error = torch.vmap(widened_by_skew)(summary.std_error, summary.skewness)
    assert int((off < -3 * summary.std_error).sum()) > 60
    assert int((off < -3 * error).sum()) < 40
    assert int((off < -4 * error).sum()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("dims", "centre", "scale"), [(8, 1.0, 0.5), (9, 1.0, 0.6), (6, 2.0, 0.5), (5, 0.3, 0.1)]
)
def test_signs_cover(dims: int, centre: float, scale: float, seed: int) -> None:
    """2^dims modes, which a mixture can't have all: draws of the prior are the estimate."""
    z = torch.linspace(-12, 12, 40_001, dtype=FLOAT)
    each = dist.Normal(zero(), 1.0).log_prob(z) + dist.Normal(z**2, scale).log_prob(zero() + centre)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(dims, dtype=FLOAT), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z**2, scale).to_event(1), obs=x)

    found = auto(Program(model), torch.full((dims,), centre, dtype=FLOAT), seed=seed)
    off = float(found.log_z) - dims * (float(each.logsumexp(0)) + math.log(24 / 40_000))
    assert not found.reliable or abs(off) <= max(0.02, 4 * float(found.std_error))


def test_skew_of_many_data_averages_out() -> None:
    error, skewness = torch.full((100,), 0.1, dtype=FLOAT), torch.full((100,), 0.2, dtype=FLOAT)
    assert torch.allclose(widened_by_skew(error, skewness), error * (1 + 1.5 * 0.2 / 10))
    assert torch.equal(widened_by_skew(error, 0.0), error)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_cover(name, target):
    result = ESTIMATORS[name](program(TARGETS[target]), torch.zeros(SEEDS, dtype=FLOAT))
    covered = float((result.log_z.abs() < 1.96 * result.std_error).double().mean())
    assert 0.90 <= covered <= 0.985, (
        f"{covered:.3f} of the intervals cover, rms error {result.log_z.square().mean().sqrt():.4f}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_error_bars_are_the_spread(target):
    result = BridgeSampling(num_chains=32, num_draws=60)(
        program(TARGETS[target]), torch.zeros(SEEDS, dtype=FLOAT)
    )
    ratio = float(result.log_z.std() / result.std_error.square().mean().sqrt())
    assert 0.75 < ratio < 1.3
