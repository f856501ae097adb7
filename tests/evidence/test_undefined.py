"""Densities that are NaN in the posterior's tail alone, where no draw of the prior comes."""

import pyro
import pyro.distributions as dist
import pytest
from evidence.case_programs import tensor
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import (
    SMC,
    AdaptiveImportanceSampling,
    BridgeSampling,
    Estimator,
    FlowImportanceSampling,
    Laplace,
    LearnedHarmonicMean,
    NestedSMC,
    PriorSampling,
)

ESTIMATORS: dict[str, Estimator] = {
    "importance": PriorSampling(30_000),
    "Laplace": Laplace(num_starts=4, num_particles=400),
    "adaptive": AdaptiveImportanceSampling(1000, num_fitted=500, num_chains=64),
    "flow": FlowImportanceSampling(1000, num_rounds=0, num_chains=64, num_steps=20),
    "SMC": SMC(num_particles=60, num_groups=4),
    "nested": NestedSMC(num_particles=50, num_moves=4),
    "bridge": BridgeSampling(num_draws=20, num_chains=32, num_warmup=20),
    "harmonic": LearnedHarmonicMean(num_draws=20, num_chains=32, num_warmup=20),
}


def program(edge: float) -> Program:
    """The posterior is N(5, 0.7), and the density NaN above an edge."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("root", 0 * (edge - z).sqrt())

    return Program(model)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_density_that_is_no_number_beside_the_posterior_is_an_alarm(name: str) -> None:
    known = ESTIMATORS[name](program(5.2), tensor(10.0))
    assert any("NaN" in warning and "root" in warning for warning in known.warnings)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_far_out_it_is_none(name: str) -> None:
    known = ESTIMATORS[name](program(20.0), tensor(10.0))
    assert not any("NaN" in warning for warning in known.warnings)
