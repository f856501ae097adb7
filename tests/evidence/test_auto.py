"""auto: exact where it can be, cross-checked elsewhere, and frank about disagreement."""

import math
import sys
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.case_programs import CASES, FLOAT, Case, case
from evidence.kind_programs import KINDS
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import SMC, Evidence, ImportanceSampling, WideSampling, auto
from ppl_dgm.evidence.agreement import Attempts, check_part, choose, compare_two
from ppl_dgm.evidence.kinds import PARTNER_ERROR, enlarged
from ppl_dgm.sampling.effort import spend


def local(x: Tensor | None = None) -> None:
    """A latent for each datum and a Student likelihood: no closed form."""
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=FLOAT), 1.0))
        pyro.sample("x", dist.StudentT(50.0, z, 1.0), obs=x)


def guide(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("z", dist.Normal(x / 2, torch.full_like(x, 0.8)))


def narrow(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 1.5, torch.full_like(x, 0.1)))


def local_truth(x: Tensor) -> Tensor:
    z = torch.linspace(-12, 12, 4001, dtype=FLOAT)[:, None]
    log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.StudentT(50.0, z, 1.0).log_prob(x)
    return log_joint.logsumexp(0) + math.log(24 / 4000)


def result(log_z: float, error: float, name: str, warnings: tuple[str, ...] = ()) -> Evidence:
    return Evidence(
        torch.tensor(log_z, dtype=FLOAT),
        torch.tensor(error, dtype=FLOAT),
        "estimate",
        "dataset",
        name,
        1,
        "",
        {},
        warnings,
    )


def test_exact_where_there_is_a_closed_form():
    def mixture(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)

    x = torch.linspace(-2, 4, 5)
    found = auto(Program(mixture), x)
    parts = [math.log(w) + dist.Normal(3.0 * k, 1.0).log_prob(x) for k, w in enumerate((0.3, 0.7))]
    assert (found.bound, found.estimator) == ("exact", "auto: Exact")
    assert torch.allclose(found.log_z, torch.stack(parts).logsumexp(0).double(), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["bs_betabinomial_tutorial", "tfp_ais_loggamma", "pymc_beta_bernoulli_20"]
)
def test_two_kinds_agree_on_the_cases(name):
    known = case(name)
    found = auto(known.program(), *known.args)
    assert "agrees with" in found.estimator
    assert len(found.diagnostics["estimates"]) >= 2
    assert abs(float(found.log_z) - known.log_z) < 4 * float(found.std_error) < 0.08


def test_data_of_their_own_are_checked():
    x = torch.linspace(-3, 3, 6, dtype=FLOAT)
    found = auto(Program(local, guide), x, budget=300_000)
    assert bool(((found.log_z - local_truth(x)).abs() < 4.5 * found.std_error + 1e-6).all())
    assert found.reliable


def test_a_part_of_the_data_is_checked_where_all_are_too_many():
    x = torch.linspace(-3, 3, 60, dtype=FLOAT)
    found = auto(Program(local, guide), x, budget=500_000)
    assert "4 data checked by SMC" in found.estimator
    assert found.log_z.shape == (60,)
    assert found.reliable


def test_a_check_of_a_part_that_disagrees_is_told():
    whole, part = (
        replace(
            result(0.0, 0.0, name),
            log_z=torch.full((count,), value, dtype=FLOAT),
            std_error=torch.full((count,), 0.01, dtype=FLOAT),
            target="datum",
        )
        for name, count, value in (("A", 10, -1.0), ("SMC", 3, -0.8))
    )
    data = torch.tensor([0, 4, 9])
    assert any("SMC gives +0.2" in warning for warning in check_part(whole, part, data).warnings)
    assert check_part(whole, replace(part, log_z=whole.log_z[data]), data).reliable


def test_a_guide_that_misses_the_posterior_is_made_up_for(monkeypatch):
    runs, estimate = [], ImportanceSampling.estimate

    def counted(self, bound):
        runs.append(bound.num_data)
        return estimate(self, bound)

    monkeypatch.setattr(ImportanceSampling, "estimate", counted)
    x = torch.linspace(-3, 3, 60, dtype=FLOAT)
    found = auto(Program(local, narrow), x, budget=500_000)
    assert found.estimator.startswith("auto: Laplace, 4 data checked by SMC")
    assert runs == [60]  # not again for the data that it has not failed on: none
    assert found.reliable
    assert bool(((found.log_z - local_truth(x)).abs() < 5 * found.std_error + 1e-6).all())


def clamped(x: Tensor | None = None) -> None:
    """Right for data between -3 and 3."""
    with pyro.plate("data", 1 if x is None else len(x)):
        z = 0.0 if x is None else 0.5 * x.clamp(-3, 3)
        pyro.sample("z", dist.Normal(z, 0.8))


@pytest.mark.parametrize("outliers", [1, 5])
def test_data_that_the_guide_fails_on_are_moved_on(outliers: int):
    x = torch.linspace(-2, 2, 40, dtype=FLOAT)
    x[3 : 3 + outliers] = 11.0
    found = auto(Program(local, clamped), x, budget=300_000)
    assert found.diagnostics["moved"].tolist() == list(range(3, 3 + outliers))
    assert f"{outliers} data by Laplace" in found.estimator
    assert found.reliable
    assert bool(((found.log_z - local_truth(x)).abs() < 5 * found.std_error + 1e-6).all())


def test_latents_that_cannot_be_summed_out_are_sampled():
    def poisson(x: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Poisson(torch.tensor(3.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor(4.0)
    count = torch.arange(40.0)
    truth = (dist.Poisson(3.0).log_prob(count) + dist.Normal(count, 1.0).log_prob(x)).logsumexp(0)
    found = auto(Program(poisson), x)
    assert abs(float(found.log_z - truth)) < 4 * float(found.std_error) < 0.05


def test_draws_stop_at_the_target():
    known = case("eight_schools_posteriordb")
    found = auto(known.program(), *known.args, target=0.04)
    assert set(found.estimator.removeprefix("auto: ").split(" agrees with ")) == {
        "PriorSampling",
        "SMC",
    }
    assert 0.01 < float(found.std_error) <= 0.04
    assert abs(float(found.log_z) - known.log_z) < 4 * float(found.std_error)
    assert found.diagnostics["num_particles"] < 20_000


@pytest.mark.slow
def test_a_finer_target_takes_more_draws():
    known = case("eight_schools_posteriordb")
    finer = auto(known.program(), *known.args, target=0.01)
    assert float(finer.std_error) <= 0.01
    assert abs(float(finer.log_z) - known.log_z) < 4 * float(finer.std_error)


def test_a_target_is_a_positive_number():
    with pytest.raises(ValueError, match="target is 0"):
        auto(Program(local), torch.zeros(2, dtype=FLOAT), target=0)


def test_same_seed_same_number():
    known = case("bs_betabinomial_tutorial")
    first, second = (
        auto(known.program(), *known.args, budget=100_000, seed=3).log_z for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_most_precise_without_alarm_is_chosen():
    found = choose([result(0.0, 0.1, "A"), result(0.05, 0.01, "B"), result(0.0, 1e-6, "C", ("k",))])
    assert found.estimator == "B agrees with A"
    assert found.reliable


def test_disagreement_is_told():
    found = choose([result(0.0, 0.01, "A"), result(1.0, 0.01, "B")])
    assert any("disagree" in warning for warning in found.warnings)
    assert not compare_two(result(0.0, 0.01, "A"), result(1.0, 0.01, "B")).agrees


@pytest.mark.parametrize("others", [
    (result(-4.0, 3.0, "B", ("R-hat",)), result(200.0, math.inf, "C")),
    (result(-10.0, 0.01, "B", ("R-hat",)),),
    (result(-9.0, 2.0, "B"),),
    (),
])  # fmt: skip
def test_worthless_partners_are_no_agreement(others):
    found = choose([result(-10.0, 0.01, "A"), *others])
    assert float(found.log_z) == -10.0
    assert any("nothing was cross-checked" in warning for warning in found.warnings)


def test_the_highest_is_given_where_none_agree():
    """What misses a part of the posterior falls short."""
    found = choose([result(-2.0, 0.001, "A"), result(0.0, 0.05, "B"), result(1.0, 3.0, "C")])
    assert (float(found.log_z), found.reliable) == (0.0, False)
    alarmed = choose([result(-2.0, 0.001, "A"), result(0.0, 0.05, "B", ("k",))])
    assert (float(alarmed.log_z), alarmed.reliable) == (0.0, False)


def test_an_estimate_far_above_two_that_agree_is_told_for_all_its_alarm():
    both = [result(-2.0, 0.001, "A"), result(-2.0, 0.01, "B")]
    assert choose([*both, result(-1.95, 0.05, "C", ("k",))]).reliable
    assert choose([*both, result(-9.0, 0.05, "C", ("k",))]).reliable
    assert choose([*both, result(0.0, 3.0, "C", ("k",))]).reliable
    found = choose([*both, result(-1.0, 0.05, "C", ("k",))])
    assert any("C -1.000" in warning for warning in found.warnings)


def test_a_third_estimate_that_disagrees_is_told():
    found = choose([result(0.0, 0.01, "A"), result(0.0, 0.02, "B"), result(-0.5, 0.03, "C")])
    assert found.estimator == "A agrees with B"
    assert any("C -0.500" in warning for warning in found.warnings)


def test_estimates_that_agree_far_below_a_third_without_alarm_miss_something():
    found = choose([result(0.0, 0.01, "A"), result(0.0, 0.02, "B"), result(2.3, 0.03, "C")])
    assert (float(found.log_z), found.reliable) == (2.3, False)
    assert "disagree" in found.warnings[0]


def test_an_estimator_that_raises_ends_nothing(monkeypatch):
    def singular(self, bound):
        raise torch.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(SMC, "estimate", singular)
    known = case("bs_betabinomial_tutorial")
    found = auto(known.program(), *known.args, budget=200_000)
    assert abs(float(found.log_z) - known.log_z) < 4 * float(found.std_error) < 0.2
    assert "not positive definite" in found.diagnostics["failed"]["SMC"]
    assert "SMC failed" in found.estimator


def test_an_estimator_over_the_budget_is_stopped_and_told():
    def costly() -> Evidence:
        spend(1001)
        return result(0.0, 0.1, "A")

    attempts = Attempts(budget=1000)
    assert attempts.add("costly", costly) is None
    attempts.add("quick", lambda: result(0.0, 0.1, "B"))
    assert attempts.allowed == 999  # as many again while nothing confirms it
    attempts.add("check", lambda: result(0.0, 0.1, "C"))
    assert attempts.add("second", lambda: spend(1)) is None  # nothing is left for another
    assert "budget of 1e+03 densities" in attempts.failed["costly"]
    assert attempts.verdict().diagnostics["densities"] == attempts.spent == 1002


def test_a_vague_estimate_stays_where_the_larger_one_raises(monkeypatch):
    """A second run of SMC with more particles takes the first one's place if it ends."""
    estimate = SMC.estimate

    def too_large(self, bound):
        if self.num_particles == 4321:
            raise MemoryError("too many particles")
        return estimate(self, bound)

    def larger(estimator, found, share):
        return replace(estimator, num_particles=4321) if isinstance(estimator, SMC) else None

    monkeypatch.setattr(SMC, "estimate", too_large)
    monkeypatch.setattr(sys.modules["ppl_dgm.evidence.auto"], "enlarged", larger)
    known = case("bs_betabinomial_tutorial")
    found = auto(known.program(), *known.args, budget=130_000, target=1e-6)
    assert "too many particles" in found.diagnostics["failed"]["SMC"]
    assert "SMC" in found.diagnostics["estimates"]


def test_a_larger_run_for_data_of_their_own_is_limited(monkeypatch):
    module = sys.modules["ppl_dgm.evidence.auto"]
    enlarged, limits = module.enlarged, []

    def limited(estimator, found, most):
        limits.append(most)
        return enlarged(estimator, found, most)

    monkeypatch.setattr(module, "enlarged", limited)
    auto(Program(local, guide), torch.linspace(-3, 3, 3, dtype=FLOAT), budget=300_000, target=1e-6)
    assert limits
    assert max(limits) < 1000


def test_a_vague_estimate_asks_for_the_particles_that_its_error_needs():
    smc = SMC(num_particles=100, num_groups=8)
    partner = PARTNER_ERROR["dataset"]

    def vague(times: float) -> Evidence:
        error = torch.tensor(times * partner, dtype=FLOAT)
        return Evidence(torch.zeros_like(error), error, "estimate", "dataset", "SMC", 2, "")

    assert enlarged(smc, vague(3.0), 10.0).num_particles in (900, 901)  # errors fall as n^-1/2
    assert enlarged(smc, vague(0.5), 10.0) is None
    assert enlarged(smc, vague(300.0), 10**4) is None
    assert enlarged(smc, replace(vague(3.0), warnings=("an alarm",)), 10.0) is None


def rare_count(x: Tensor | None = None) -> None:
    k = pyro.sample("k", dist.Poisson(torch.tensor(0.01)))
    pyro.sample("x", dist.Normal(5.0 * k, 1.0), obs=x)


def counts_of_data(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        k = pyro.sample("k", dist.Geometric(torch.tensor(0.99)).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(5.0 * k.sum(-1), 1.0), obs=x)


def rare_truth() -> Tensor:
    k = torch.arange(50.0, dtype=FLOAT)
    poisson = dist.Poisson(torch.tensor(0.01, dtype=FLOAT)).log_prob(k)
    return (poisson + dist.Normal(5 * k, 1.0).log_prob(torch.tensor(15.0))).logsumexp(0)


def geometric_truth(x: Tensor) -> Tensor:
    k = torch.arange(50.0, dtype=FLOAT)
    prior = dist.Geometric(torch.tensor(0.99, dtype=FLOAT)).log_prob(k)
    likelihood = dist.Normal(5 * (k[:, None] + k), 1.0).log_prob(x[:, None, None])
    return (prior[:, None] + prior + likelihood).flatten(1).logsumexp(1)


def test_a_rare_count_is_checked_by_a_sum():
    found = auto(Program(rare_count), torch.tensor(15.0))
    assert float(found.log_z) == pytest.approx(float(rare_truth()), abs=1e-6)
    assert found.reliable


def test_counts_are_proposed_far_out():
    x = torch.tensor([0.0, 15.0, 40.0], dtype=FLOAT)
    found = WideSampling(num_particles=100_000)(Program(counts_of_data), x)
    assert bool(((found.log_z - geometric_truth(x)).abs() < 4 * found.std_error).all())
    assert float(found.std_error.max()) < 0.2
    with pytest.raises(ValueError, match="count"):
        WideSampling()(Program(local), x)


def test_a_withheld_number_is_no_partner():
    found = choose([result(math.nan, math.nan, "A", ("withheld",)), result(1.0, 0.01, "B")])
    assert float(found.log_z) == 1.0
    assert not found.reliable
    assert not compare_two(found, replace(found, log_z=torch.tensor(math.nan))).agrees


def test_errors_of_the_user_are_not_swallowed():
    with pytest.raises(ValueError, match="at least 1000"):
        auto(Program(local), torch.zeros(2, dtype=FLOAT), budget=10)
    with pytest.raises(ValueError, match="NaN|finite"):
        auto(Program(local), torch.full((2,), math.nan, dtype=FLOAT))


def test_a_pilot_that_is_withheld_ends_nothing(monkeypatch) -> None:
    """The number of draws that a NaN asks for was an error of auto."""
    module, known = sys.modules["ppl_dgm.evidence.auto"], case("bs_betabinomial_tutorial")

    def withheld(*_, **__):
        nothing = {"ess": torch.tensor(math.nan)}
        return replace(result(math.nan, math.nan, "A", ("withheld",)), diagnostics=nothing)

    monkeypatch.setattr(module.PriorSampling, "__call__", withheld)
    program = known.program()
    bound = module.bind(program, known.args, {})
    assert module.pilot(program, bound, 0, module.Allowance(0.02, 1_000_000, 2**28)) is None


@pytest.mark.slow
@pytest.mark.parametrize("known", [*CASES.values(), *KINDS], ids=lambda known: known.name)
def test_no_miss_is_silent(known: Case):
    found = auto(known.program(), *known.args)
    scale = math.hypot(float(found.total_std_error), known.reference_error)
    assert not found.reliable or abs(float(found.total) - known.log_z) <= max(0.02, 4 * scale)
