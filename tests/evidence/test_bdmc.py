"""Bidirectional bounds against exact evidences: below, above, and how close."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.targets import GAUSSIAN, linear_gaussian
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import AIS, BDMC, Evidence, Sandwich
from ppl_dgm.evidence.simulation import simulate
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.kernels import HMC, ULA

NUM_DATA = 1000


def exact_density(program: Program, x: Tensor, noise: float = 0.5) -> Tensor:
    """Log densities of a linear-Gaussian program at other data, in closed form.

    The covariance is that of its draws.
    """
    model, _, _, _ = linear_gaussian(num_data=1)
    weight = next(
        cell.cell_contents
        for cell in model.__closure__
        if getattr(cell.cell_contents, "ndim", 0) == 2
    )  # type: ignore
    covariance = weight @ weight.T + noise**2 * torch.eye(3, dtype=x.dtype)
    return dist.MultivariateNormal(x.new_zeros(3), covariance).log_prob(x)


@pytest.mark.parametrize(
    "certificate",
    [
        BDMC(AIS(num_temperatures=4, num_chains=2)),
        BDMC(AIS(num_temperatures=4, num_chains=2, start="guide")),
        BDMC(AIS(num_temperatures=4, num_chains=2, kernel=ULA())),
        BDMC(AIS(num_temperatures=4, num_chains=2, kernel=HMC(num_leapfrog=1)), num_particles=5),
    ],
    ids=["prior", "guide", "unadjusted", "filters"],
)
def test_forwards_is_unbiased_for_z_and_backwards_for_its_inverse(certificate: BDMC) -> None:
    """Far from convergence, E[Z^] = Z and E[1 / Z^] = 1 / Z, so that bounds hold in expectation."""
    noise = 2.0  # with less, 1 / Z^ has no variance
    model, guide, _, _ = linear_gaussian(num_data=1, noise=noise)
    program = Program(model, guide)
    x = torch.zeros(NUM_DATA, 3, dtype=torch.float64)
    result, simulated = certificate(program, x), observed_by(certificate, program, x)
    truth = exact_density(program, simulated, noise)
    for bound, sign in ((result.lower, 1.0), (result.upper, -1.0)):
        error = sign * (bound.log_z - truth)
        ratio = error.exp()
        assert (ratio.mean() - 1).abs() < 4.5 * ratio.std() / math.sqrt(NUM_DATA)
        assert error.mean() < 0
    assert result.mean_gap > 5 * result.mean_gap_error


def observed_by(certificate: BDMC, program: Program, x: Tensor, seed: int = 0) -> Tensor:
    """The data that a certificate simulates from a seed."""
    with torch.no_grad():
        bound = program.bind(x)
        with seeded(seed):
            return simulate(bound)[1][0]


@pytest.mark.slow
def test_a_thousand_temperatures_bracket_a_linear_gaussian_vae() -> None:
    model, guide, x, _ = linear_gaussian(num_data=10)
    certificate = BDMC(AIS(num_temperatures=1000, num_chains=16, kernel=HMC(num_leapfrog=2)))
    program = Program(model, guide)
    result = certificate(program, x)
    truth = exact_density(program, observed_by(certificate, program, x))
    assert abs(result.mean_gap) < 0.1
    assert (result.lower.log_z - truth).mean() < 0.02
    assert (result.upper.log_z - truth).mean() > -0.02
    assert (result.lower.bound, result.upper.bound) == ("lower", "upper")
    assert result.lower.digest == result.upper.digest != ""


def test_a_program_with_a_shared_latent_has_one_pair_of_bounds() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    program, x = Program(model), torch.zeros(6, dtype=torch.float64)
    certificate = BDMC(AIS(num_temperatures=150))
    for seed in range(2):
        result = certificate(program, x, seed=seed)
        covariance = torch.eye(6, dtype=torch.float64) + 4.0
        truth = dist.MultivariateNormal(x, covariance).log_prob(
            observed_by(certificate, program, x, seed)
        )
        assert result.lower.log_z < truth + 4 * result.lower.std_error
        assert result.upper.log_z > truth - 0.3
        assert abs(result.mean_gap) < 0.5


def test_covariates_stay_and_data_are_exchanged() -> None:
    def model(x: Tensor, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), scale))
            pyro.sample("x", dist.Normal(z, 0.1 * scale), obs=x)

    scale = torch.tensor([1.0, 1e6], dtype=torch.float64)
    values, args, _ = simulate(Program(model).bind(torch.zeros(2, dtype=torch.float64), scale))
    assert args[1] is scale
    assert args[0].abs()[1] > 1e3 > 10 > args[0].abs()[0]
    assert ((args[0] - values["z"][0]).abs() < scale).all()


def test_the_report_compares_real_data_with_simulated() -> None:
    model, guide, x, _ = linear_gaussian(num_data=12)
    method = AIS(num_temperatures=30)
    result = BDMC(method)(Program(model, guide), x)
    assert isinstance(result, Sandwich)
    assert "alike" in result.report(method(Program(model, guide), x))
    assert "use more temperatures" in result.report(method(Program(model, guide), 100 * x))
    assert f"gap {result.mean_gap:.3g}" in repr(result)


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="has factors"):
        BDMC(AIS(num_temperatures=2))(GAUSSIAN.program(), *GAUSSIAN.data(2))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x + 1)

    with pytest.raises(ValueError, match="not among the program's arguments"):
        BDMC(AIS(num_temperatures=2))(Program(model), torch.zeros(2))
    with pytest.raises(ValueError, match="not reversible"):
        BDMC(AIS(kernel=ULA()), num_particles=10)


def test_a_sandwich_is_the_evidence_of_its_lower_bound() -> None:
    model, guide, x, _ = linear_gaussian(num_data=5)
    result = BDMC(AIS(num_temperatures=10))(Program(model, guide), x)
    assert isinstance(result, Evidence)
    assert result.bound == "lower"
    assert result.target == "datum"
    assert torch.equal(result.log_z, result.lower.log_z)
    assert type(result.lower) is Evidence
    assert torch.equal(result.diagnostics["gap"], result.upper.log_z - result.log_z)


def regression(x: Tensor, covariate: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope * covariate, 1.0), obs=x)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_covariate_equal_to_the_data_is_not_exchanged(swapped: bool) -> None:
    """Which argument is observed is found by flow, not by value."""

    def turned(covariate: Tensor, x: Tensor) -> None:
        regression(x, covariate)

    values = torch.linspace(0.5, 2, 6).double()
    program = Program(turned if swapped else regression)
    with torch.no_grad():
        _, args, _ = simulate(program.bind(values.clone(), values.clone()))
    assert torch.equal(args[1 - swapped], values)
    assert not torch.equal(args[int(swapped)], values)


def test_the_same_tensor_as_data_and_covariate_keeps_the_covariate() -> None:
    values = torch.ones(6).double()
    certificate = BDMC(AIS(num_temperatures=60, num_chains=8))
    found = certificate(Program(regression), values, values)
    assert abs(float(found.gap)) < 0.3
    assert found.reliable


def test_data_that_the_program_conditions_on_are_refused() -> None:
    def centred(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x)

    with pytest.raises(ValueError, match="depends on the values that are observed"):
        BDMC(AIS(num_temperatures=10))(Program(centred), torch.ones(4).double())


def test_ambiguous_arguments_are_refused() -> None:
    def either(x: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.maximum(x, y))

    with pytest.raises(ValueError, match="not among|several|comes from"):
        BDMC(AIS(num_temperatures=10))(Program(either), torch.ones(4), torch.ones(4))


def test_crossed_bounds_raise_an_alarm() -> None:
    settings: dict = {"target": "dataset", "estimator": "BDMC", "num_dims": 1, "digest": ""}
    low = Evidence(torch.tensor(-13.7), torch.tensor(0.3), "lower", **settings)
    high = Evidence(torch.tensor(-18.7), torch.tensor(0.4), "upper", **settings)
    assert any("above the upper" in warning for warning in Sandwich.between(low, high).warnings)
    assert Sandwich.between(high, low).reliable


def shifted_normal(loc: float) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Program(model)


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.bool, torch.float32])
def test_simulated_data_have_the_digits_of_the_program_not_of_the_given_data(
    dtype: torch.dtype,
) -> None:
    given = torch.zeros(50, dtype=dtype)
    with torch.no_grad():
        simulated = simulate(shifted_normal(1e7).bind(given).in_double())[1][0]
    assert simulated.dtype == torch.float64
    assert (simulated.round() != simulated).all()
    assert 0.5 < (simulated - 1e7).std() < 2.0


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_bounds_are_computed_in_double(dtype: torch.dtype) -> None:
    """The mean of log p over data from N(1e7, 1.25) is minus its entropy."""
    given = torch.zeros(200, dtype=dtype)
    result = BDMC(AIS(num_temperatures=20, compile=False))(shifted_normal(1e7), given)
    assert result.reliable
    entropy = 0.5 * math.log(2 * math.pi * math.e * 1.25)
    for bound in (result.lower, result.upper):
        assert abs(bound.log_z.mean() + entropy) < 4 * math.sqrt(0.5 / 200) + 0.05
