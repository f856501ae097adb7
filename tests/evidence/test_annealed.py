"""AIS against closed forms.

Value, error bar, rate, unbiasedness, checkpoints, memory and bad input.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.targets import CAUCHY, GAUSSIAN, LocalTarget, coverage, linear_gaussian
from torch import Tensor, nn

from ppl_dgm import Program
from ppl_dgm.evidence import AIS
from ppl_dgm.evidence.annealed import weight_alarms, weight_diagnostics
from ppl_dgm.sampling import checkpoint
from ppl_dgm.sampling.convergence import SKEW_FACTOR, mean_exp_std_error
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.kernels import HMC, MALA, ULA, Kernel, RandomWalk
from ppl_dgm.sampling.smc.paths import linear_temperatures, sigmoid_temperatures


@pytest.mark.parametrize("schedule", ["adaptive", "sigmoid", "linear"])
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_data_with_latents_of_their_own(schedule: str, start: str) -> None:
    model, guide, x, truth = linear_gaussian(num_data=40)
    ais = AIS(num_temperatures=120, schedule=schedule, start=start)  # type: ignore[arg-type]
    result = ais(Program(model, guide), x)
    assert (result.target, result.bound, result.log_z.shape) == ("datum", "estimate", (40,))
    z = (result.log_z - truth) / result.std_error
    assert z.abs().max() < 4.5
    assert z.mean().abs() < 4 / math.sqrt(40)
    assert result.std_error.median() < 0.3
    assert result.reliable, result.warnings


def test_a_latent_shared_by_all_data() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = torch.linspace(-1, 4, 9, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(9).double(), torch.eye(9).double() + 4.0).log_prob(
        x
    )
    result = AIS(num_temperatures=200)(Program(model), x)
    assert (result.target, result.log_z.shape) == ("dataset", ())
    assert (result.log_z - exact).abs() < 4 * result.std_error < 0.5


def test_discrete_latents_are_summed_out() -> None:
    means = torch.tensor([-2.0, 1.0], dtype=torch.float64)

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            c = pyro.sample(
                "c",
                dist.Categorical(torch.tensor([0.3, 0.7]).double()),
                infer={"enumerate": "parallel"},
            )
            z = pyro.sample("z", dist.Normal(means.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + means[c], 0.5), obs=x)

    x = torch.linspace(-3, 3, 12, dtype=torch.float64)
    parts = (
        dist.Normal(means, math.sqrt(1.25)).log_prob(x.unsqueeze(-1))
        + torch.tensor([0.3, 0.7]).double().log()
    )
    result = AIS(num_temperatures=60)(Program(model), x)
    assert ((result.log_z - parts.logsumexp(-1)) / result.std_error).abs().max() < 4


def test_a_likelihood_that_is_zero_for_half_of_the_prior() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.factor("inside", torch.where(z > 0, 0.0, -torch.inf))

    result = AIS(num_temperatures=30, num_chains=200)(Program(model), torch.zeros(4))
    assert ((result.log_z - math.log(0.5)) / result.std_error).abs().max() < 4


@pytest.mark.parametrize("kernel", [HMC(), MALA(), RandomWalk(), ULA()])
def test_every_kernel_gives_unbiased_weights(kernel: Kernel) -> None:
    """E[w] = Z for few temperatures and bad moves alike.

    The unadjusted kernel's weights are corrected.
    """
    log_w = replicate_log_z(GAUSSIAN, AIS(num_temperatures=4, num_chains=2, kernel=kernel), 2000)
    relative = (log_w - GAUSSIAN.log_z).exp()
    assert (relative.mean() - 1).abs() < 4 * relative.std() / math.sqrt(2000)
    assert log_w.mean() < GAUSSIAN.log_z - 3 * log_w.std() / math.sqrt(2000)


def replicate_log_z(target: LocalTarget, estimator: AIS, count: int) -> Tensor:
    return estimator(target.program(), *target.data(count)).log_z


@pytest.mark.slow
def test_the_variance_of_log_weights_falls_as_one_over_the_temperatures() -> None:
    few, many = (
        AIS(num_temperatures=t)(GAUSSIAN.program(), *GAUSSIAN.data(150)) for t in (40, 160)
    )
    variance = [
        result.diagnostics["log_weight_std"].square().mean().log2() for result in (few, many)
    ]
    assert (
        1.5 < variance[0] - variance[1] < 2.6
    )  # 4 times as many: 2^2, and a little for what chains forget
    assert (few.log_z - GAUSSIAN.log_z).mean() < (many.log_z - GAUSSIAN.log_z).mean() < 0.02


def test_diagnostics_have_an_entry_for_each_datum_and_temperature() -> None:
    model, guide, x, _ = linear_gaussian(num_data=5)
    found = AIS(num_temperatures=20, num_chains=100)(Program(model, guide), x).diagnostics
    assert found["acceptance"].shape == found["ess"].shape == found["pareto_k"].shape == (5,)
    assert (
        found["acceptance_by_temperature"].shape == found["overlap_by_temperature"].shape == (20,)
    )
    assert bool((found["overlap_by_temperature"] > 0.5).all())
    assert bool(((found["acceptance"] > 0.5) & (found["acceptance"] < 0.98)).all())


def test_a_result_is_its_seeds() -> None:
    model, guide, x, _ = linear_gaussian(num_data=3)
    runs = [
        AIS(num_temperatures=10)(Program(model, guide), x, seed=seed).log_z for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_memory_is_bounded_and_divides_data_and_chains() -> None:
    model, guide, x, truth = linear_gaussian(num_data=6)
    rows: list[int] = []

    def watched(x: Tensor | None = None) -> None:
        rows.append(1 if x is None else len(x))
        model(x)

    result = AIS(num_temperatures=8, num_chains=6, num_pilots=8, memory=2_500)(
        Program(watched, guide), x
    )
    assert rows.count(6) < len(rows) / 4  # checks before and after the estimate
    assert ((result.log_z - truth) / result.std_error).abs().max() < 4.5


class StoppedError(Exception):
    """What stops a run in its middle."""


class Counted:
    """A model that counts its runs, stopped when it has run so often.

    Not part of what it computes.
    """

    def __init__(self, model: Callable, limit: float = math.inf) -> None:
        self.model, self._limit, self._calls = model, limit, 0

    def __call__(self, x: Tensor | None = None) -> None:
        self._calls += 1
        if self._calls > self._limit:
            raise StoppedError
        self.model(x)

    @property
    def calls(self) -> int:
        return self._calls


@pytest.mark.parametrize("share", [0.6, 0.75, 0.95])
def test_a_run_continues_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    model, guide, x, _ = linear_gaussian(num_data=4)
    settings: dict = {"num_temperatures": 30, "kernel": HMC(num_leapfrog=2)}
    counted = Counted(model)
    whole = AIS(**settings)(Program(counted, guide), x)
    resumed = AIS(**settings, checkpoint=tmp_path / "ais.pt")
    with pytest.raises(StoppedError):
        resumed(Program(Counted(model, share * counted.calls), guide), x)
    assert (tmp_path / "ais.pt").exists()
    torch.manual_seed(123)
    once_more = Counted(model)
    again = resumed(Program(once_more, guide), x)
    assert torch.equal(again.log_z, whole.log_z)
    assert torch.equal(
        again.diagnostics["acceptance_by_temperature"],
        whole.diagnostics["acceptance_by_temperature"],
    )
    assert once_more.calls < counted.calls


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model, guide, x, _ = linear_gaussian(num_data=2)
    path = tmp_path / "ais.pt"
    AIS(num_temperatures=3, checkpoint=path)(Program(model, guide), x)
    for other, data, seed in ((4, x, 0), (3, x + 1, 0), (3, x, 1)):
        with pytest.raises(ValueError, match="not a checkpoint of this computation"):
            AIS(num_temperatures=other, checkpoint=path)(Program(model, guide), data, seed=seed)


class Regression(nn.Module):
    """x ~ N(slope covariate, 1), the slope's prior scale in a buffer."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor, covariate: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, self.scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(slope * covariate, 1.0), obs=x)


def test_a_checkpoint_knows_covariates_and_buffers(tmp_path: Path) -> None:
    x, first, second = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 0.0])
    run = AIS(num_temperatures=3, checkpoint=tmp_path / "ais.pt")
    run(Program(Regression()), x, first)
    with pytest.raises(ValueError, match="argument 1 differs"):
        run(Program(Regression()), x, second)
    with pytest.raises(ValueError, match=r"buffer .*scale differs"):
        run(Program(Regression(2.0)), x, first)
    run(Program(Regression()), x, first)  # its own file is taken


def test_schedules_begin_at_zero_end_at_one_and_rise() -> None:
    for beta in (linear_temperatures(7), sigmoid_temperatures(7)):
        assert (beta[0].item(), beta[-1].item(), len(beta)) == (0.0, 1.0, 8)
        assert bool((beta.diff() > 0).all())
    torch.testing.assert_close(sigmoid_temperatures(6), 1 - sigmoid_temperatures(6).flip(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_temperatures": 0}, "num_temperatures is 0; expected at least 1"),
        ({"num_chains": 1}, "num_chains is 1"),
        ({"schedule": "cubic"}, "schedule is 'cubic'; expected one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AIS(**settings)


def observed_through(latent: Callable[[], Tensor]) -> Program:
    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            pyro.sample("x", dist.Normal(latent(), 1.0), obs=x)

    return Program(model)


def test_programs_without_continuous_latents_are_refused() -> None:
    x, estimate = torch.zeros(3), AIS(num_temperatures=2)
    with pytest.raises(ValueError, match="discrete"):
        estimate(observed_through(lambda: pyro.sample("z", dist.Poisson(2.0))), x)
    with pytest.raises(ValueError, match="no latents"):
        estimate(observed_through(lambda: torch.zeros(())), x)
    program = observed_through(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
    with pytest.raises(ValueError, match="start is 'posterior'"):
        AIS(start="posterior")(program, x)  # type: ignore[arg-type]


def test_an_improper_prior_is_refused() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="proper prior"):
        AIS(num_temperatures=2)(Program(model, guide), torch.zeros(3))


def test_a_likelihood_that_is_zero_everywhere_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.factor(
                "inside",
                torch.where(pyro.sample("z", dist.Normal(0.0, 1.0)) > 100, 0.0, -torch.inf),
            )

    with pytest.raises(ValueError, match="the likelihood is zero at all"):
        AIS(num_temperatures=2)(Program(model), torch.zeros(2))


def test_a_prior_beyond_floating_point_is_reported() -> None:
    def model(x: Tensor) -> None:
        precision = pyro.sample(
            "precision", dist.Gamma(torch.tensor(1e-4).double(), torch.tensor(1e-4).double())
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, precision.rsqrt()), obs=x)

    result = AIS(num_temperatures=5)(Program(model), torch.ones(4).double())
    assert any("coincide" in warning for warning in result.warnings)


def test_too_few_temperatures_are_reported() -> None:
    model, guide, x, _ = linear_gaussian(num_data=8, noise=0.02)
    result = AIS(num_temperatures=2)(Program(model, guide), x)
    assert any("few chains carry all the weight" in warning for warning in result.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("target", LocalTarget.registry(), ids=lambda target: target.name)
@pytest.mark.parametrize("num_temperatures", [60, 300])
def test_coverage_of_95_percent_intervals(target: LocalTarget, num_temperatures: int) -> None:
    if target is CAUCHY and num_temperatures == 60:
        num_temperatures = 120
    result = AIS(num_temperatures=num_temperatures)(target.program(), *target.data(400))
    share = coverage(result, target.log_z)
    assert 0.90 <= share <= 0.98


@pytest.mark.parametrize("num_chains", [16, 25])
def test_wide_log_weights_of_few_chains_are_no_silent_misses(num_chains: int) -> None:
    """Log-normal weights of sd 1.5 and 2: the mean is that of chains that are rarely seen."""
    for spread, allowed in ((0.5, 0.002), (1.0, 0.005), (1.5, 0.005), (2.0, 0.005)):
        generator = torch.Generator().manual_seed(num_chains)
        draws = spread * torch.randn(num_chains, 2000, generator=generator, dtype=torch.float64)
        error = log_mean_exp(draws) - spread**2 / 2
        skewness = weight_diagnostics(draws)["skewness"]
        bars = mean_exp_std_error(draws) * (1 + SKEW_FACTOR * skewness)
        missed = (error.abs() > 4 * bars) & (error.abs() > 0.02)
        silent = [i for i in missed.nonzero().flatten().tolist() if not weight_alarms(draws[:, i])]
        assert len(silent) <= allowed * 2000, spread


def test_wide_weights_raise_an_alarm() -> None:
    """Few temperatures in 5 dimensions: errors of a nat, with log weights spread by two."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(5, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.2).to_event(1), obs=x)

    found = [
        AIS(num_temperatures=25, num_chains=25)(Program(model), torch.ones(5).double(), seed=seed)
        for seed in range(3)
    ]
    assert not any(result.reliable for result in found)
