"""Evidence of unnormalised densities against sums, closed forms, and its error bars."""

import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from energies import Ising, NormalEnergy, make_rbm, states
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_dgm import Program, compare, fit, objectives
from ppl_dgm.evidence import (
    AIS,
    ELBO,
    SMC,
    BridgeSampling,
    Estimator,
    Evidence,
    Exact,
    ImportanceSampling,
    Laplace,
    auto,
    check_moves,
)
from ppl_dgm.evidence.normalising import tails_alarm, without_data
from ppl_dgm.families import RBM, Energy
from ppl_dgm.sampling.smc.ladder import Pilot

PRECISION = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
SHIFT = torch.tensor([1.0, -0.5], dtype=torch.float64)


def normal() -> tuple[Energy, Tensor, Tensor]:
    """An energy that is a normal density, data, and their log density."""
    torch.manual_seed(2)
    x = torch.randn(5, 2, dtype=torch.float64)
    mean = torch.linalg.solve(PRECISION, SHIFT)
    model = Energy(NormalEnergy(PRECISION, SHIFT), 2).double()
    return model, x, MultivariateNormal(mean, precision_matrix=PRECISION).log_prob(x)


def test_binary_models_are_summed() -> None:
    every = states(4)
    for model in (make_rbm(), make_rbm(4, 22)):
        assert Exact()(model, every).log_z.exp().sum() == pytest.approx(1.0)
    lattice = Energy(Ising(3, 0.1, 0.3), 9, base="bernoulli").double()
    result = Exact()(lattice, states(9))
    torch.testing.assert_close(result.log_z.exp().sum(), torch.ones(()).double())
    assert (result.bound, result.target) == ("exact", "datum")
    assert auto(lattice, states(9)[:3]).estimator == "auto: Exact"


def test_energies_whose_last_layer_is_zero_are_normalised_too() -> None:
    """No change of the data changes them, but one of their parameters would."""
    rbm = RBM(3, 2).double()
    net = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)).double()
    with torch.no_grad():
        for parameter in (*rbm.parameters(), net[0].weight):
            parameter.zero_()
    net[0].bias.data.fill_(2.0)
    for model in (rbm, Energy(net, 3, base="bernoulli").double()):
        found = Exact()(model, states(3)).log_z
        torch.testing.assert_close(found, torch.full((8,), -3 * math.log(2)).double())
        with pytest.raises(ValueError, match="'energy'. depend on the data.*ELBO would rise"):
            fit(model, states(3), objectives.ELBO(), steps=1, progress=False)


def test_a_factor_that_data_give_only_the_shape_is_no_energy() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("constant", 0.0 * x - scale)

    x = torch.tensor([0.5, -1.0])
    expected = dist.Normal(0.0, 1.0).log_prob(x).double() - 2
    torch.testing.assert_close(Exact()(Program(model), x).log_z, expected)


def test_normal_densities_are_integrated() -> None:
    model, x, expected = normal()
    torch.testing.assert_close(Exact()(model, x).log_z, expected)
    one = Exact()(model, x[:1])
    torch.testing.assert_close(one.log_z, expected[:1])
    assert one.log_z.shape == (1,)


def test_a_real_rbm_is_a_mixture() -> None:
    rbm = make_rbm(2, 2, "gaussian")
    parts, x = rbm.parts, torch.randn(6, 2, dtype=torch.float64)
    h, scale = states(2), rbm.parts.units.scale
    field = h @ parts.weight.T
    mean = parts.units.bias + scale * field
    log_weight = h @ parts.hidden_bias + (field**2 / 2 + field * parts.units.bias / scale).sum(1)
    each = dist.Normal(mean, scale).to_event(1).log_prob(x.unsqueeze(1))
    expected = (log_weight.log_softmax(0) + each).logsumexp(1).detach()
    torch.testing.assert_close(Exact()(rbm, x).log_z, expected)
    found = AIS(num_temperatures=300, num_chains=100)(rbm, x)
    assert bool(((found.log_z - expected).abs() < 4 * found.std_error).all())


@pytest.mark.parametrize(
    "estimator",
    [
        AIS(num_temperatures=60, num_chains=50),
        SMC(num_particles=60),
        ImportanceSampling(4000),
        Laplace(num_particles=2000),
        BridgeSampling(num_chains=8, num_draws=100),
    ],
    ids=lambda e: e.name,
)
def test_every_estimator_estimates_the_partition_function(estimator: Estimator) -> None:
    model, x, expected = normal()
    found = estimator(model, x, seed=1)
    error = found.log_z - expected
    torch.testing.assert_close(error, error[:1].expand_as(error))  # one for all data
    assert bool((error.abs() < 4 * found.std_error).all())
    assert found.shared_std_error == pytest.approx(float(found.std_error[0]))
    assert found.bound == "estimate"
    assert float(found.diagnostics["log_partition_std_error"]) == found.shared_std_error


@pytest.mark.parametrize("schedule", ["adaptive", "sigmoid", "linear"])
def test_rbms_are_annealed_from_base_rates(schedule: Any) -> None:
    rbm, every = make_rbm(8, 6), states(8)[::17]
    exact = Exact()(rbm, every)
    found = AIS(num_temperatures=400, num_chains=100, schedule=schedule)(rbm, every)
    assert bool(((found.log_z - exact.log_z).abs() < 4 * found.std_error).all())
    assert float(found.std_error[0]) < 0.05
    smc = SMC(num_particles=200)(rbm, every)
    assert bool(((smc.log_z - exact.log_z).abs() < 4 * smc.std_error).all())


def test_a_lower_bound_of_the_partition_function_is_an_upper_one_of_the_density() -> None:
    model, x, expected = normal()
    found = ELBO(2000)(model, x)
    assert found.bound == "upper"
    assert bool((found.log_z > expected).all())


@torch.no_grad()
def test_base_rates_near_the_data_shorten_the_path() -> None:
    rbm = make_rbm(8, 6)
    with torch.no_grad():
        rbm.parts.units.bias.fill_(-4.0)
        rbm.parts.units.base_logits.zero_()
    lengths = []
    for logit in (0.0, -4.0):
        rbm.parts.units.base_logits.fill_(logit)
        lengths.append(float(Pilot.walk(rbm.parts, 200).length[-1]))
    assert lengths[1] < 0.7 * lengths[0]


def test_bit_flips_anneal_binary_energies() -> None:
    model, every = Energy(Ising(2, 0.2, 0.5), 4, base="bernoulli").double(), states(4)
    exact = Exact()(model, every)
    found = AIS(num_temperatures=20, num_chains=60, num_pilots=20)(model, every)
    assert bool(((found.log_z - exact.log_z).abs() < 4 * found.std_error).all())


def test_the_variance_of_ladder_weights_falls_with_temperatures() -> None:
    rbm = make_rbm(8, 6)
    spread = []
    for number in (20, 80, 320):
        found = AIS(num_temperatures=number, num_chains=400)(rbm, states(8)[:1])
        spread.append(float(found.diagnostics["log_weight_std"]) ** 2)
    slope = (math.log(spread[2]) - math.log(spread[0])) / math.log(16)
    assert -1.35 < slope < -0.65  # as 1 / T


def test_a_shared_error_does_not_average_away() -> None:
    model, x, _ = normal()
    many = x.repeat(20, 1)
    found = SMC(num_particles=50)(model, many)
    assert float(found.total_std_error) == pytest.approx(100 * found.shared_std_error, rel=1e-6)
    assert float(found.pooled().total_std_error) == pytest.approx(float(found.total_std_error))
    table = compare({"smc": found, "exact": Exact()(model, many)})
    row = table["smc"]
    assert row.std_error == pytest.approx(float(found.total_std_error))
    # The differences have no spread over the data at all, and yet an error.
    assert table["exact"].difference_error + row.difference_error == pytest.approx(
        float(found.total_std_error), rel=1e-3
    )
    assert check_moves(SMC(num_particles=50), model, many).reliable


def conditional(x: Tensor | None = None, y: Tensor | None = None) -> None:
    """N(y, 1) as a tilted standard normal: every covariate has its own partition function."""
    size = len(y) if y is not None else 1
    with pyro.plate("data", size):
        value = pyro.sample("x", dist.Normal(torch.zeros(size).double(), 1.0), obs=x)
        pyro.factor("energy", value * y)


def test_covariates_have_partition_functions_of_their_own() -> None:
    x, y = torch.tensor([0.3, -1.0, 2.0]).double(), torch.tensor([0.5, 0.0, -1.0]).double()
    expected = dist.Normal(y, 1.0).log_prob(x)
    torch.testing.assert_close(Exact()(Program(conditional), x, y).log_z, expected)
    found = SMC(num_particles=100)(Program(conditional), x, y)
    assert bool(((found.log_z - expected).abs() < 4 * found.std_error + 1e-9).all())
    assert found.shared_std_error == 0.0


def with_latent(x: Tensor | None = None) -> None:
    """z ~ N(0, 1), x ~ N(0, 1), times exp(x z / 2): jointly normal."""
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        x = pyro.sample("x", dist.Normal(torch.zeros(()).double(), 1.0), obs=x)
        pyro.factor("energy", 0.5 * x * z)


def test_latents_are_integrated_out_of_both() -> None:
    x = torch.tensor([0.3, -1.0, 2.0]).double()
    expected = dist.Normal(0.0, (1 / 0.75) ** 0.5).log_prob(x)
    found = SMC(num_particles=200)(Program(with_latent), x)
    assert bool(((found.log_z - expected).abs() < 4 * found.std_error).all())
    assert bool((found.std_error > found.shared_std_error).all())
    with pytest.raises(ValueError, match="no bound of their ratio; use AIS or SMC"):
        ELBO(100)(Program(with_latent), x)


def test_auto_checks_one_kind_by_another() -> None:
    rbm, x = make_rbm(6, 5), states(6)[:3]
    exact = Exact()(rbm, x)
    rbm.parts.log_partition = lambda: None  # type: ignore[method-assign]
    found = auto(rbm, x, budget=400_000)
    assert found.estimator == "auto: AIS agrees with SMC"
    assert bool(((found.log_z - exact.log_z).abs() < 4 * found.std_error).all())


def shared(x: Tensor) -> None:
    """A latent that all data share, in an energy."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        value = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("energy", -scale * value**4)


def quartic(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        value = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("energy", -(value**4))


def counts(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        value = pyro.sample("x", dist.Poisson(2.0), obs=x)
        pyro.factor("energy", -0.1 * value**2)


def of_its_argument(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("energy", -(x**2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMC()(Program(of_its_argument), torch.ones(3)), r"'energy'.*def model\(x=None\)"),
        (lambda: SMC()(Program(shared), torch.ones(3)), "'scale'.*shared by all.*fit them"),
        (lambda: Exact()(Program(quartic), torch.ones(3)), "no closed form.*AIS or SMC"),
        (lambda: Exact()(RBM(30, 30), torch.ones(3, 30)), "no closed form.*AIS or SMC"),
        (lambda: AIS()(Program(counts), torch.ones(3)), "not one binary vector.*Importance"),
    ],
)
def test_bad_input(make: Callable[[], Evidence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_importance_sampling_sums_counts() -> None:
    found = ImportanceSampling(20_000)(Program(counts), torch.ones(1))
    n = torch.arange(60.0)
    log_z = (dist.Poisson(2.0).log_prob(n) - 0.1 * n**2).logsumexp(0)
    expected = dist.Poisson(2.0).log_prob(torch.tensor(1.0)) - 0.1 - log_z
    assert float(found.log_z[0]) == pytest.approx(
        float(expected), abs=4 * float(found.std_error[0])
    )


@pytest.mark.slow
def test_annealed_error_bars_cover_the_sum() -> None:
    torch.manual_seed(11)
    rbm = RBM(64, 20)
    with torch.no_grad():
        rbm.parts.weight.normal_(0, 0.3)
        rbm.parts.units.bias.normal_(-1, 1.0)
        rbm.parts.hidden_bias.normal_(-1, 1.0)
    x = torch.bernoulli(torch.full((1, 64), 0.3))
    exact = float(Exact()(rbm, x).log_z[0])
    estimator = AIS(num_temperatures=600, num_chains=100)
    found = [estimator(rbm, x, seed=seed) for seed in range(100)]
    errors = torch.stack([one.log_z[0] - exact for one in found])
    bars = torch.stack([one.std_error[0] for one in found])
    covered = int((errors.abs() < 1.96 * bars).sum())
    assert 88 <= covered <= 100  # binomial, 95 % of 100
    assert float(errors.abs().quantile(0.95)) < 0.05


@pytest.mark.parametrize(
    ("tilt", "base", "finite"),
    [
        (-1.0, "normal", True),
        (0.49, "normal", True),
        (0.5, "normal", False),  # a flat density
        (0.7, "normal", False),
        (-0.1, dist.StudentT(1.0, torch.zeros(2)).to_event(1), True),
        (0.1, dist.StudentT(1.0, torch.zeros(2)).to_event(1), False),
        (-0.1, dist.Normal(torch.full((2,), 50.0), 0.01).to_event(1), True),
    ],
)
def test_infinite_partition_functions_are_an_alarm(tilt: float, base: Any, finite: bool) -> None:
    """Of base(x) exp(tilt |x|^2), in two dimensions."""
    model = Energy(lambda x: -tilt * x.square().sum(-1), 2, base)
    found = ImportanceSampling(100)(model, torch.full((1, 2), 50.0))
    alarmed = any("partition function is infinite" in warning for warning in found.warnings)
    assert alarmed is not finite


def far_rbm(num_visible: int, lift: float, base: float) -> RBM:
    """A hidden unit that puts all others to one or to zero, by log odds of 60.

    All ones weigh `lift` nats more than all zeros; the base measure has log odds of `base`.
    """
    rbm = RBM(num_visible, 1).double()
    with torch.no_grad():
        rbm.parts.weight.fill_(120.0)
        rbm.parts.units.bias.fill_(-60.0)
        rbm.parts.hidden_bias.fill_(-60.0 * num_visible + lift)
        rbm.parts.units.base_logits.fill_(base)
    return rbm


def test_the_error_of_one_partition_function_is_no_bias_of_each_datum() -> None:
    """All data share it: nothing averages out."""
    rbm = make_rbm(12, 6)
    x = torch.bernoulli(torch.full((5000, 12), 0.5, dtype=torch.float64))
    found = AIS(num_temperatures=5, num_chains=64)(rbm, x)
    assert found.shared_std_error > 0.2
    assert not any("too low" in text for text in found.warnings)


class TwoWells(nn.Module):
    """Energy of two normals, of sd 0.5 at the origin and 0.3 elsewhere, beside a standard one."""

    def __init__(self, place: float, lift: float) -> None:
        super().__init__()
        self.place, self.lift = place, lift

    def log_density(self, x: Tensor) -> Tensor:
        near, far = (x / 0.5).square().sum(-1), ((x - self.place) / 0.3).square().sum(-1)
        return torch.logaddexp(-0.5 * near, self.lift - 0.5 * far)

    def forward(self, x: Tensor) -> Tensor:
        return -self.log_density(x) - 0.5 * x.square().sum(-1)


ANNEALED = pytest.mark.parametrize("method", [AIS(num_temperatures=100), SMC(num_particles=50)])


@ANNEALED
def test_a_mode_that_all_chains_miss_is_seen(method: Estimator) -> None:
    """Both agree with themselves, 71 nats off: chains from fair coins reach the other mode."""
    rbm, x = far_rbm(12, 71.0, -3.0), torch.zeros(2, 12, dtype=torch.float64)
    found, truth = method(rbm, x), Exact()(rbm, x)
    assert float((found.log_z - truth.log_z)[0]) == pytest.approx(71, abs=0.5)
    said = [re.search(r"alone outweigh the estimate, by (\S+) nats", t) for t in found.warnings]
    assert [float(match[1]) for match in said if match] == [pytest.approx(71, abs=0.5)]
    near = far_rbm(12, 71.0, 3.0)
    assert method(near, x).reliable


@ANNEALED
@pytest.mark.parametrize(("dims", "place", "lift"), [(2, 3.0, 1.0), (2, 20.0, 71.0)])
def test_a_well_far_from_the_base_measure_is_seen(
    method: Estimator, dims: int, place: float, lift: float
) -> None:
    wells = TwoWells(place, lift)
    program = Energy(wells, dims).double()
    x = torch.full((2, dims), place, dtype=torch.float64)
    x[0] = 0.0
    parts = torch.tensor([dims * math.log(0.5), dims * math.log(0.3) + lift], dtype=torch.float64)
    truth = wells.log_density(x) - 0.5 * dims * math.log(2 * math.pi) - parts.logsumexp(0)
    found = method(program, x)
    assert float((found.log_z - truth).abs().max()) > 0.5
    assert any("some modes alone outweigh" in text for text in found.warnings)
    light = Energy(TwoWells(place, -12.0), dims).double()
    assert method(light, x[:1]).reliable


def test_a_density_that_falls_off_raises_no_alarm() -> None:
    """Points a thousand deviations away and those a million away lie in the same directions."""
    bowl = Energy(lambda x: 0.5 * x[:, 0].square(), 1)
    free = without_data(bowl, bowl.bind(torch.zeros(1, 1)), sum_out=False)
    torch.manual_seed(0)
    assert not any(tails_alarm(free) for _ in range(200))


def test_draws_of_the_base_measure_serve_where_no_chains_move() -> None:
    """Energies of four classes, against the sum over all 81 values; and a tilted Poisson."""
    torch.manual_seed(1)
    table = torch.randn(4, 3, 4, 3)

    def pairs(x: Tensor) -> Tensor:
        return sum(table[i, x[:, i].long(), j, x[:, j].long()] for i in range(4) for j in range(i))

    every = torch.cartesian_prod(*4 * [torch.arange(3)])
    classes = Energy(pairs, 4, dist.Categorical(torch.ones(4, 3)).to_event(1))
    counts = Energy(lambda x: 0.7 * x[:, 0], 1, dist.Poisson(torch.tensor([3.0])).to_event(1))
    rate = torch.tensor(3.0 * math.exp(-0.7))  # exp(-x) tilts a Poisson to another
    for program, x, truth in (
        (classes, every[:5], -pairs(every[:5]) - (-pairs(every)).logsumexp(0)),
        (counts, torch.arange(4.0).unsqueeze(1), dist.Poisson(rate).log_prob(torch.arange(4.0))),
    ):
        found = auto(program, x)
        assert 0 < found.shared_std_error < 0.02
        assert (found.log_z - truth).abs().max() < 4 * found.shared_std_error
        assert ["nothing was cross-checked" in text for text in found.warnings] == [True]
