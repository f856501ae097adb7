"""SMC, thermodynamic integration and stepping stones against closed forms and cases."""

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.case_programs import case
from evidence.targets import CUT, GAUSSIAN, LocalTarget, coverage, linear_gaussian
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import (
    SMC,
    Estimator,
    Evidence,
    SteppingStone,
    ThermodynamicIntegration,
    check_moves,
)
from ppl_dgm.evidence.thermodynamic import corrected_trapezoid
from ppl_dgm.sampling import checkpoint
from ppl_dgm.sampling.convergence import mean_exp_std_error
from ppl_dgm.sampling.kernels import ULA, RandomWalk
from ppl_dgm.sampling.smc.resampling import SCHEMES

CHAINS = {"num_temperatures": 10, "num_draws": 80, "num_warmup": 40}
ESTIMATORS: list[Estimator] = [
    SMC(num_particles=120),
    ThermodynamicIntegration(**CHAINS),
    SteppingStone(**CHAINS),
]
BY_NAME = pytest.mark.parametrize(
    "estimator", ESTIMATORS, ids=[estimator.name for estimator in ESTIMATORS]
)


@BY_NAME
def test_data_with_latents_of_their_own(estimator: Estimator) -> None:
    model, guide, x, truth = linear_gaussian(num_data=20)
    result = estimator(Program(model, guide), x)
    assert (result.target, result.log_z.shape, result.log_z.dtype) == (
        "datum",
        (20,),
        torch.float64,
    )
    z = (result.log_z - truth) / result.std_error
    assert z.abs().max() < 4.5
    assert z.mean().abs() < 4 / math.sqrt(20)
    assert result.std_error.median() < 0.15
    assert result.reliable, result.warnings


@BY_NAME
def test_a_latent_shared_by_all_data(estimator: Estimator) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = torch.linspace(-1, 4, 9, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(9).double(), torch.eye(9).double() + 4.0).log_prob(
        x
    )
    result = estimator(Program(model), x)
    assert (result.target, result.log_z.shape) == ("dataset", ())
    assert (result.log_z - exact).abs() < 4 * result.std_error < 0.5


@BY_NAME
def test_data_that_rule_out_most_of_the_prior(estimator: Estimator) -> None:
    result = estimator(CUT.program(), *CUT.data(100))
    z = (result.log_z - CUT.log_z) / result.std_error
    assert z.mean().abs() < 4.5 * z.std() / 10
    assert z.std() < 1.6
    assert result.std_error.median() < 0.25
    assert coverage(result, CUT.log_z) > 0.85


@BY_NAME
def test_diagnostics_are_there_for_each_datum(estimator: Estimator) -> None:
    model, guide, x, _ = linear_gaussian(num_data=3)
    found = estimator(Program(model, guide), x).diagnostics
    names = {"SMC": ("group_std", "overlap", "num_temperatures")}.get(
        estimator.name, ("r_hat", "swaps")
    )
    for name in ("ess", "acceptance", *names):
        assert found[name].shape == (3,), name
    assert bool((found["ess"] > 10).all())


@pytest.mark.parametrize(
    "estimator",
    [SMC(num_particles=20), SteppingStone(num_temperatures=4, num_draws=20, num_warmup=10)],
    ids=["smc", "rungs"],
)
def test_a_run_continues_bit_by_bit(
    estimator: Estimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    model, guide, x, _ = linear_gaussian(num_data=2)
    whole = estimator(Program(model, guide), x)
    saves, write = [], checkpoint.write_state

    def stop(path: str, contents: dict) -> None:
        saves.append(write(path, contents))
        if len(saves) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_state", stop)
    resumed = type(estimator)(**{**vars(estimator), "checkpoint": tmp_path / "run.pt"})
    with pytest.raises(KeyboardInterrupt):
        resumed(Program(model, guide), x)
    assert torch.equal(resumed(Program(model, guide), x).log_z, whole.log_z)


@pytest.mark.parametrize(
    "settings",
    [{"resampling": scheme} for scheme in SCHEMES]
    + [{"kernel": ULA()}, {"kernel": RandomWalk()}, {"start": "guide"}],
    ids=str,
)
def test_variants_of_smc(settings: dict) -> None:
    model, guide, x, truth = linear_gaussian(num_data=10)
    result = SMC(num_particles=100, **settings)(Program(model, guide), x)
    assert ((result.log_z - truth) / result.std_error).abs().max() < 4.5
    assert result.std_error.max() < 0.5


def check_case(name: str, *estimators: Estimator) -> None:
    problem = case(name)
    for estimator in estimators:
        result = estimator(problem.program(), *problem.args)
        assert (result.log_z - problem.log_z).abs() < 3.5 * result.std_error < 1.0


@pytest.mark.parametrize("name", ["tfp_ais_loggamma", "bs_std_normal_2d_off_centre"])
def test_small_published_cases(name: str) -> None:
    check_case(name, SMC(num_particles=200, num_groups=4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "tfp_ais_loggamma",
        "dynesty_shells_2",
        "dynesty_eggbox",
        "dynesty_gauss3d",
        "pocomc_rosenbrock10_U",
        "eight_schools_posteriordb",
        "bs_hier_normal_H0",
        "bs_hier_normal_H1",
        "radiata_x_density",
        "galaxy_k2_eq",
    ],
)
def test_published_cases(name: str) -> None:
    check_case(name, SMC(num_particles=1000), SteppingStone(), ThermodynamicIntegration())


@pytest.mark.slow
def test_the_error_of_smc_falls_as_the_square_root_of_particles() -> None:
    few, many = (
        SMC(num_particles=n, num_groups=8)(GAUSSIAN.program(), *GAUSSIAN.data(40))
        for n in (40, 320)
    )
    errors = [
        (result.log_z - GAUSSIAN.log_z).square().mean().sqrt().log2() for result in (few, many)
    ]
    assert 1.0 < errors[0] - errors[1] < 2.1  # 8 times as many: 2^1.5


# ---- too few moves -------------------------------------------------------------------------------


def test_groups_that_disagree_are_reported() -> None:
    """Many dimensions and one short move for each temperature."""

    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    lazy = SMC(num_particles=100, num_moves=1, cess=0.5, kernel=RandomWalk())
    result = lazy(Program(wide), 3 * torch.ones(1, 20, dtype=torch.float64))
    assert any("groups disagree" in text for text in result.warnings)


class Creeping:
    """An estimator `slope` nats further for every doubling of its moves, with an error of 0.1."""

    def __init__(self, slope: float, value: float = 0.0) -> None:
        self.slope, self.value = slope, value

    def with_twice_the_moves(self) -> "Creeping":
        return Creeping(self.slope, self.value + self.slope)

    def __call__(
        self, program: Program, *args: Any, seed: int | None = 0, **kwargs: Any
    ) -> Evidence:
        noise = 0.1 * torch.randn(
            args[0], generator=torch.Generator().manual_seed(seed or 0), dtype=torch.float64
        )
        return Evidence(
            self.value + noise, torch.full_like(noise, 0.1), "estimate", "datum", "creeping", 1, ""
        )


@pytest.mark.parametrize(
    "kind",
    [ThermodynamicIntegration, pytest.param(SteppingStone, marks=pytest.mark.slow)],
)
def test_chains_that_do_not_pass_between_two_phases_are_reported(kind: type) -> None:
    """Data at 1000 of a Cauchy prior.

    Hot chains are near 0, cold ones at the data, and nothing leads from one to the other.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Cauchy(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    estimator, x = kind(num_draws=100, num_warmup=50), torch.full((3,), 1000.0, dtype=torch.float64)
    far, near = estimator(Program(model), x), estimator(Program(model), x / 1000)
    truth = torch.distributions.Cauchy(0.0, 1.0).log_prob(
        x
    )  # the noise is nothing beside the prior there
    assert ((far.log_z - truth).abs() > 4 * far.std_error).any()
    assert any("at some temperature disagree" in warning for warning in far.warnings)
    assert near.reliable, near.warnings


def test_twice_the_moves_show_what_one_run_does_not() -> None:
    program = Program(linear_gaussian(num_data=1)[0])
    for count in (1, 50):
        assert check_moves(Creeping(0.0), program, count).reliable
        moved = check_moves(Creeping(0.7), program, count)
        assert moved.log_z.mean() > 0.4
        assert "has not converged" in moved.warnings[0]
        assert moved.diagnostics["moved"].shape == (count,)
    model, guide, x, _ = linear_gaussian(num_data=5)
    assert check_moves(SMC(num_particles=100), Program(model, guide), x).reliable


def test_the_error_of_few_weights() -> None:
    log_w = 0.3 * torch.randn(16, 20_000, dtype=torch.float64)
    z = (log_w.logsumexp(0) - math.log(16) - 0.045) / mean_exp_std_error(log_w)
    assert 0.94 < (z.abs() < 1.96).double().mean() < 0.98


def test_the_error_of_weights_that_may_be_zero() -> None:
    zero = -math.inf
    log_w = torch.tensor(
        [[zero] * 3 + [0.0] * 1, [zero] * 4, [0.0] * 4, [zero, 0.0, 0.0, 0.0]]
    ).T.repeat(4, 1)
    error = mean_exp_std_error(log_w)
    assert error[1:3].tolist() == [math.inf, 0.0]
    student = 2.1314 / 1.95996
    torch.testing.assert_close(error[0].item(), student * math.sqrt(3.2 / 16), rtol=1e-4, atol=0)
    assert error[0] > error[3] > 0


def test_the_corrected_trapezoid_is_of_fourth_order() -> None:
    def error(nodes: int) -> float:
        beta = torch.linspace(0, 1, nodes, dtype=torch.float64)
        return abs(float(corrected_trapezoid(beta, beta.exp(), beta.exp())[0]) - math.expm1(1.0))

    assert error(9) / error(17) == pytest.approx(16, rel=0.05)


def test_few_temperatures_of_many_data_raise_an_alarm() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    x = 2 * torch.randn(300, dtype=torch.float64)
    short = {"num_draws": 40, "num_warmup": 40, "compile": False}
    result = ThermodynamicIntegration(num_temperatures=6, **short)(Program(model), x)
    assert any("the integral over temperatures" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("estimator", "settings", "message"),
    [
        (SMC, {"num_particles": 1}, "num_particles is 1"),
        (SMC, {"num_groups": 1}, "num_groups is 1"),
        (SMC, {"cess": 1.0}, "cess is 1.0"),
        (SMC, {"resample_below": 2.0}, "resample_below is 2.0"),
        (SMC, {"resampling": "none"}, "expected one of"),
        (SteppingStone, {"num_temperatures": 1}, "num_temperatures is 1"),
        (ThermodynamicIntegration, {"num_temperatures": 2}, "num_temperatures is 2"),
        (ThermodynamicIntegration, {"kernel": ULA()}, "leaves no density invariant"),
    ],
)
def test_settings_out_of_range_are_refused(estimator: type, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**settings)


# ---- coverage ------------------------------------------------------------------------------------

SLOW: list[Estimator] = [
    SMC(num_particles=200),
    ThermodynamicIntegration(num_temperatures=16, num_draws=300),
    SteppingStone(num_temperatures=16, num_draws=300),
]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", SLOW, ids=[estimator.name for estimator in SLOW])
@pytest.mark.parametrize("target", [*LocalTarget.registry(), CUT], ids=lambda target: target.name)
def test_coverage_of_95_percent_intervals(estimator: Estimator, target: LocalTarget) -> None:
    result: Evidence = estimator(target.program(), *target.data(200))
    assert 0.90 <= coverage(result, target.log_z) <= 0.98
