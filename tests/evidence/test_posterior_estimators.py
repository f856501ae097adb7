"""Harmonic means, Savage-Dickey ratios and chains against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.case_programs import FLOAT, case, sleep
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import (
    BridgeSampling,
    HarmonicMean,
    LearnedHarmonicMean,
    ThermodynamicIntegration,
    savage_dickey,
)
from ppl_dgm.sampling.chains import hmc_draws
from ppl_dgm.sampling.convergence import chain_ess, energy_bfmi, split_r_hat
from ppl_dgm.sampling.given_draws import given_draws
from ppl_dgm.sampling.unconstrained import Unconstrained

X = torch.linspace(-1, 2, 5, dtype=FLOAT)


def shared_mean(x: Tensor | None = None) -> None:
    """Unknown mean: the posterior is N(sum x / (n + 1), 1 / (n + 1))."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=FLOAT), 1.0))
    with pyro.plate("data", 5 if x is None else len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shared_mean_truth() -> float:
    covariance = torch.eye(5, dtype=FLOAT) + torch.ones(5, 5, dtype=FLOAT)
    return float(dist.MultivariateNormal(torch.zeros(5, dtype=FLOAT), covariance).log_prob(X))


def exact_posterior(chains: int, draws: int) -> dict[str, Tensor]:
    return {"mu": X.sum() / 6 + torch.randn(chains, draws, dtype=FLOAT) / math.sqrt(6)}


# ---- chains --------------------------------------------------------------------------------------


def test_chains_have_the_posterior_moments():
    target = Unconstrained(Program(shared_mean).bind(X))
    draws = hmc_draws(target, 64, 50, 60, 5)
    values = draws.points[..., 0]
    ess = float(chain_ess(values))
    assert float(split_r_hat(values)) < 1.05
    assert abs(float(values.mean() - X.sum() / 6)) < 4 / math.sqrt(6 * ess)
    assert abs(float(values.var()) * 6 - 1) < 5 * math.sqrt(2 / ess)


def test_chains_of_all_data_are_moved_at_once():
    def local(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((), 2.0, dtype=FLOAT), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    x = torch.tensor([0.0, 3.0, 20.0], dtype=FLOAT)
    target = Unconstrained(Program(local).bind(x))
    z = target.constrain(hmc_draws(target, 64, 50, 60, 5).points.flatten(0, 1))["z"]
    assert torch.allclose(z.mean(0), (2 + x) / 2, rtol=0.08)  # the posterior is Gamma(2 + x, 2)


@pytest.mark.parametrize(("chains", "dims"), [(1, 10), (4, 10), (64, 100)])
def test_fewer_chains_than_dimensions_leave_the_plane_they_start_in(chains: int, dims: int):
    zeros, x = torch.zeros(dims, dtype=FLOAT), 1.4 * torch.randn(dims, dtype=FLOAT)

    def model(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    draws = hmc_draws(Unconstrained(Program(model).bind(x)), chains, 400 // chains + 20, 100, 5)
    centred = math.sqrt(2) * (draws.flat - x / 2)
    spread = torch.linalg.eigvalsh(centred.T @ centred / len(centred))
    error = math.sqrt(dims / len(centred))
    assert (1 - error) ** 2 / 4 < float(spread[0])
    assert float(spread[-1]) < 2 * (1 + error) ** 2


def test_ess_of_an_autoregression():
    rho, state, rows = 0.6, torch.randn(50, dtype=FLOAT), []
    for step in torch.randn(2000, 50, dtype=FLOAT):
        state = rho * state + math.sqrt(1 - rho**2) * step
        rows.append(state)
    expected = 50 * 2000 * (1 - rho) / (1 + rho)
    assert abs(float(chain_ess(torch.stack(rows, 1))) / expected - 1) < 0.1


def test_what_does_not_vary_has_all_its_draws():
    constant = torch.ones(2, 50, dtype=FLOAT)
    assert float(chain_ess(constant)) == 100
    assert float(split_r_hat(constant)) == 1


def funnel() -> None:
    """Neal's funnel: its neck is far narrower than any one step size."""
    v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=FLOAT), 3.0))
    scale = (v / 2).exp().unsqueeze(-1)
    pyro.sample("x", dist.Normal(torch.zeros(9, dtype=FLOAT), scale).to_event(1))
    pyro.factor("nothing", 0 * v)


@pytest.mark.parametrize("estimator", [
    BridgeSampling(num_draws=30, num_warmup=30),
    pytest.param(LearnedHarmonicMean(num_draws=30, num_warmup=30), marks=pytest.mark.slow),
    ThermodynamicIntegration(num_draws=10, num_warmup=20, num_temperatures=4, num_chains=2),
])  # fmt: skip
def test_chains_that_diverge_say_so(estimator):
    found = estimator(Program(funnel))
    assert any("diverged" in warning for warning in found.warnings)
    assert float(found.diagnostics["divergent"].max()) > 0.001


def test_chains_that_keep_their_energy_raise_no_alarm():
    found = BridgeSampling()(Program(shared_mean), X)
    assert found.reliable
    assert float(found.diagnostics["divergent"]) == 0


def test_bfmi_is_one_for_normals_and_small_for_heavy_tails():
    normal = -0.5 * torch.randn(1000, 20, 5, dtype=FLOAT).square().sum(-1)
    assert abs(float(energy_bfmi(normal, 5)) - 1) < 0.05
    tails = dist.StudentT(0.4).sample((1000, 20)).double()
    assert float(energy_bfmi(dist.StudentT(0.4).log_prob(tails), 1)) < 0.2


# ---- harmonic means ------------------------------------------------------------------------------


def test_learned_harmonic_mean_finds_the_evidence():
    result = LearnedHarmonicMean(posterior=exact_posterior(4, 2000))(Program(shared_mean), X)
    assert abs(float(result.log_z) - shared_mean_truth()) < 4 * float(result.std_error) < 0.06
    assert result.reliable


def test_learned_harmonic_mean_covers():
    program, truth = Program(shared_mean), shared_mean_truth()
    results = [
        LearnedHarmonicMean(posterior=exact_posterior(2, 500), mirror=False, num_components=1)(
            program, X
        )
        for _ in range(30)
    ]
    z = torch.stack([(r.log_z - truth) / r.std_error for r in results])
    assert 0.75 < float(z.square().mean().sqrt()) < 1.3


def test_a_density_wider_than_the_posterior_is_flagged():
    def heavy(x: Tensor | None = None) -> None:
        pyro.sample("z", dist.Uniform(torch.zeros(2, dtype=FLOAT), 1.0).to_event(1))
        pyro.factor("one", torch.zeros((), dtype=FLOAT))

    posterior = {"z": torch.rand(2, 1000, 2, dtype=FLOAT)}
    narrow = LearnedHarmonicMean(posterior=posterior, mirror=False)(Program(heavy))
    assert abs(float(narrow.log_z)) < 4 * float(narrow.std_error) + 0.01


def test_harmonic_mean_is_never_reliable():
    result = HarmonicMean(posterior=exact_posterior(4, 1000))(Program(shared_mean), X)
    assert any("infinite variance" in warning for warning in result.warnings)
    assert float(result.log_z) == pytest.approx(
        -float(
            (-dist.Normal(exact_posterior(1, 200000)["mu"].T, 1.0).log_prob(X).sum(-1)).logsumexp(0)
            - math.log(200000)
        ),
        abs=0.5,
    )


@pytest.mark.parametrize(
    "settings", [{"shrink": 0.0}, {"shrink": 1.5}, {"num_components": 0}, {"posterior": "gibbs"}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        LearnedHarmonicMean(**settings)


# ---- Savage-Dickey -------------------------------------------------------------------------------


def test_savage_dickey_is_the_difference_of_two_evidences():
    x = case("bs_sleep_jss_H1").args[0]
    found = savage_dickey(Program(sleep(True)), x, site="delta", value=0.0)
    truth = case("bs_sleep_jss_H0").log_z - case("bs_sleep_jss_H1").log_z
    assert abs(float(found.log_bayes_factor) - truth) < 4 * float(found.std_error) < 0.8
    prior = dist.Cauchy(0.0, math.sqrt(0.5)).log_prob(torch.zeros(()))
    assert abs(float(found.log_prior - prior)) < 0.1


def test_savage_dickey_in_a_conjugate_model():
    sampler = BridgeSampling(posterior=exact_posterior(4, 2000))
    found = savage_dickey(Program(shared_mean), X, site="mu", value=0.5, sampler=sampler)
    half = torch.full((), 0.5, dtype=FLOAT)
    truth = dist.Normal(X.sum() / 6, 1 / math.sqrt(6)).log_prob(half) - dist.Normal(
        0.0, 1.0
    ).log_prob(half)
    assert abs(float(found.log_bayes_factor - truth)) < 4 * float(found.std_error) < 0.1


def test_savage_dickey_refuses_what_it_cannot_fix():
    known = case("bs_betabinomial_tutorial")
    with pytest.raises(ValueError, match="no continuous latent 'delta'"):
        savage_dickey(known.program(), *known.args, site="delta")
    with pytest.raises(ValueError, match="outside the support"):
        savage_dickey(known.program(), *known.args, site="theta", value=2.0)


def years(y: Tensor, year: Tensor) -> None:
    """A regression whose intercept and slope are all but one, as years are far from zero."""
    zero = torch.zeros((), dtype=FLOAT)
    intercept = pyro.sample("intercept", dist.Normal(zero, 100.0))
    slope = pyro.sample("slope", dist.Normal(zero, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + slope * year, 1.0), obs=y)


def test_savage_dickey_moves_the_nuisance_along():
    year = torch.linspace(1990, 2020, 31, dtype=FLOAT)
    y = 3 + 0.03 * (year - 2005) + torch.randn(31, dtype=FLOAT)
    zero, plain = torch.zeros(31, dtype=FLOAT), torch.eye(31, dtype=FLOAT) + 1e4
    without = dist.MultivariateNormal(zero, plain).log_prob(y)
    full = dist.MultivariateNormal(zero, plain + year[:, None] * year).log_prob(y)
    found = savage_dickey(Program(years), y, year, site="slope")
    error = float((found.log_bayes_factor - (without - full)).abs())
    assert error < 4 * float(found.std_error) < 0.1


def test_a_single_bounded_parameter_is_not_flagged():
    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=FLOAT), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    one = torch.ones((), dtype=FLOAT)
    truth = dist.Gamma(6 * one, 5 * one).log_prob(one) - dist.Gamma(2 * one, one).log_prob(one)
    found = savage_dickey(Program(model), torch.tensor([1.0, 0, 2, 1]), site="rate", value=1.0)
    assert not found.warnings
    assert float((found.log_bayes_factor - truth).abs()) < 4 * float(found.std_error) < 0.1


def test_a_mode_that_no_chain_visits_is_told():
    """Half of the mass lies in a spike far out: the factor at zero is log 2 too large."""

    def model():
        prior = dist.Normal(torch.zeros((), dtype=FLOAT), 6.0)
        z = pyro.sample("z", prior)
        wide, spike = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(20.0, 0.01).log_prob(z)
        pyro.factor("f", torch.logaddexp(wide, spike) - math.log(2) - prior.log_prob(z))

    found = savage_dickey(Program(model), site="z", sampler=BridgeSampling(num_chains=8))
    assert float(found.log_bayes_factor) == pytest.approx(math.log(6), abs=0.1)  # for log 3
    assert any("some modes alone outweigh" in text for text in found.warnings)


def test_a_scale_of_light_tails_is_not_refused():
    """The logarithm of a half-normal variable has lighter tails than any normal weight."""

    def model() -> None:
        s = pyro.sample("s", dist.HalfNormal(torch.ones((), dtype=FLOAT)))
        pyro.factor("likelihood", -1.5 * s**2)

    posterior, prior = (dist.HalfNormal(torch.tensor(s, dtype=FLOAT)) for s in (0.5, 1.0))
    torch.manual_seed(0)
    sampler = BridgeSampling(posterior={"s": posterior.sample((4, 500))})
    found = savage_dickey(Program(model), site="s", value=0.5, sampler=sampler)
    at = torch.tensor(0.5, dtype=FLOAT)
    off = float(found.log_bayes_factor - posterior.log_prob(at) + prior.log_prob(at))
    assert abs(off) < 4 * float(found.std_error) < 0.2


def test_a_point_of_infinite_prior_density_is_refused_or_has_no_error():
    """The terms have infinite mean; the shape fitted to their draws may fall below one."""

    def horseshoe(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfCauchy(torch.ones((), dtype=FLOAT)))
        effect = pyro.sample("effect", dist.Normal(torch.zeros((), dtype=FLOAT), scale))
        pyro.sample("x", dist.Normal(effect, 1.0), obs=x)

    try:
        found = savage_dickey(Program(horseshoe), torch.ones(()), site="effect")
    except ValueError as error:
        assert "has no Bayes factor" in str(error)  # noqa: PT017 - one of two right ends
    else:
        assert found.warnings
        assert bool(found.std_error.isnan())


@pytest.mark.parametrize("kind", [BridgeSampling, LearnedHarmonicMean])
@pytest.mark.parametrize(("shift", "stretch"), [(1.0, 1.0), (0.0, 0.6), (0.0, 1.6)])
def test_draws_of_another_posterior_are_told(kind, shift, stretch):
    right = exact_posterior(4, 500)["mu"]
    assert kind(posterior={"mu": right})(Program(shared_mean), X).reliable
    wrong = X.sum() / 6 + stretch * (right - X.sum() / 6) + shift / math.sqrt(6)
    found = kind(posterior={"mu": wrong})(Program(shared_mean), X)
    assert any("Stein" in warning for warning in found.warnings)


@pytest.mark.parametrize("kind", [BridgeSampling, LearnedHarmonicMean])
def test_mass_at_the_edge_of_floats_is_an_alarm(kind):
    """A Beta posterior, a fifth of whose mass is nearer to one than doubles tell."""

    def tosses(concentration):
        def model(x):
            p = pyro.sample("p", dist.Beta(concentration.clone(), concentration.clone()))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Bernoulli(p), obs=x)

        return Program(model)

    estimator = kind(num_chains=32, num_draws=50, num_warmup=20, num_leapfrog=3)
    ones = torch.ones(10, dtype=torch.float64)
    edge = estimator(tosses(torch.tensor(0.05, dtype=torch.float64)), ones)
    inside = estimator(tosses(torch.tensor(1.0, dtype=torch.float64)), ones)
    assert any("edge of floats" in warning for warning in edge.warnings)
    assert not any("edge of floats" in warning for warning in inside.warnings)


def slow_chains(memory: float) -> Tensor:
    """Eight stationary chains of 200 draws whose autocorrelation falls as memory^lag."""
    draws = [torch.randn(8, 4, dtype=FLOAT)]
    for _ in range(199):
        noise = torch.randn(8, 4, dtype=FLOAT)
        draws.append(memory * draws[-1] + math.sqrt(1 - memory**2) * noise)
    return torch.stack(draws, 1)


@pytest.mark.parametrize("kind", [BridgeSampling, LearnedHarmonicMean])
@pytest.mark.parametrize(("memory", "alarm"), [(0.98, True), (0.3, False)])
def test_chains_worth_few_draws_are_told(kind, memory, alarm):
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=FLOAT), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    torch.manual_seed(0)
    x = torch.linspace(-1.0, 1.0, 4, dtype=FLOAT)
    posterior = {"z": x / 2 + math.sqrt(0.5) * slow_chains(memory)}
    warnings = kind(posterior=posterior)(Program(model), x).warnings
    assert any("independent ones" in warning for warning in warnings) == alarm


def copied(kind: str) -> Tensor:
    draws = exact_posterior(64, 100)["mu"]
    chosen = {
        "independent": draws,
        "a chain 64 times": draws[:1].expand(64, -1),
        "half of the chains": draws[:32].repeat(2, 1),
        "blocks": draws[:1].repeat(4, 4),
        "staying": draws[:, :5].repeat_interleave(20, 1),
    }
    return chosen[kind]


@pytest.mark.parametrize("kind", [BridgeSampling, LearnedHarmonicMean, savage_dickey])
@pytest.mark.parametrize(
    ("draws", "alarm"),
    [("independent", False), ("a chain 64 times", True), ("half of the chains", True)],
)
def test_copies_of_chains_are_told(kind, draws, alarm):
    torch.manual_seed(3)
    posterior = {"mu": copied(draws)}
    if kind is savage_dickey:
        sampler = BridgeSampling(posterior=posterior)
        warnings = savage_dickey(Program(shared_mean), X, site="mu", sampler=sampler).warnings
    else:
        warnings = kind(posterior=posterior)(Program(shared_mean), X).warnings
    assert any("copies of each other" in warning for warning in warnings) == alarm


@pytest.mark.parametrize(("draws", "often"), [("blocks", 16), ("staying", 1), ("independent", 1)])
def test_draws_that_come_again_elsewhere_are_counted(draws: str, often: int):
    target = Unconstrained(Program(shared_mean).bind(X))
    found = given_draws(target, {"mu": copied(draws)})
    assert float(found.diagnostics["copies"]) == often


def test_copies_are_counted_for_each_datum():
    def local(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=FLOAT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    draws = torch.randn(4, 50, 5, 2, dtype=FLOAT)
    draws[:, :, 3] = draws[:1, :, 3]
    found = given_draws(Unconstrained(Program(local).bind(X)), {"z": draws})
    assert found.diagnostics["copies"].tolist() == [1, 1, 1, 4, 1]
