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
)

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
