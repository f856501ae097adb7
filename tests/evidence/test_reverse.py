"""Reverse annealing of partition functions against exact sums and integrals."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from energies import Ising, NormalEnergy, make_rbm, states
from evidence.targets import linear_gaussian
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import AIS, BDMC, Evidence, Exact, ReverseAIS, Sandwich
from ppl_dgm.families import RBM, Energy

PRECISION = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
SHIFT = torch.tensor([1.0, -0.5], dtype=torch.float64)
FEW = AIS(num_temperatures=3, num_chains=2000, schedule="linear", num_pilots=8)


def normal() -> Energy:
    return Energy(NormalEnergy(PRECISION, SHIFT), 2).double()


def lattice() -> Energy:
    return Energy(Ising(2, 0.2, 0.5), 4, base="bernoulli").double()


def data_of(model: Program) -> Tensor:
    one = model.parts.weight[:, 0] if isinstance(model, RBM) else model.model.fn.base.zeros
    return torch.zeros(3, len(one), dtype=torch.float64)


def apart(found: Evidence, truth: Evidence) -> float:
    """The error of log p in standard errors."""
    return float((found.log_z - truth.log_z)[0] / found.std_error[0])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: make_rbm(6, 4), id="hidden"),
        pytest.param(lambda: make_rbm(4, 22), id="visible", marks=pytest.mark.slow),
        pytest.param(lambda: make_rbm(2, 3, "gaussian"), id="real", marks=pytest.mark.slow),
        pytest.param(lattice, id="bits", marks=pytest.mark.slow),
        pytest.param(normal, id="normal", marks=pytest.mark.slow),
    ],
)
def test_weights_downwards_are_unbiased_for_the_inverse(model: object) -> None:
    """Far from convergence the mean of w is 1 / Z: at three temperatures any slip shows."""
    program = model()  # type: ignore[operator]
    x = data_of(program)
    found, truth = ReverseAIS(FEW)(program, x, seed=3), Exact()(program, x)
    assert abs(apart(found, truth)) < 4
    assert found.bound == "lower"
    assert float(found.std_error[0]) < 0.2


def test_both_directions_hold_the_sum_between_them() -> None:
    rbm, x = make_rbm(8, 6), states(8)[::17]
    truth = Exact()(rbm, x)
    found = BDMC(AIS(num_temperatures=150, num_chains=100))(rbm, x)
    assert (found.lower.bound, found.upper.bound) == ("lower", "upper")
    assert abs(apart(found.lower, truth)) < 4
    assert abs(apart(found.upper, truth)) < 4
    assert abs(found.mean_gap) < 4 * found.mean_gap_error < 0.4
    shared = torch.hypot(found.lower.std_error, found.upper.std_error)[0]
    assert found.mean_gap_error == pytest.approx(float(shared), rel=1e-6)  # more data add nothing
    assert "simulated" not in repr(found)
    assert found.warnings == ()


def test_ends_of_chains_make_an_estimate() -> None:
    rbm, x = make_rbm(6, 5), states(6)[:2]
    truth = Exact()(rbm, x)
    rbm.parts.states = lambda: None  # type: ignore[method-assign]
    found = ReverseAIS(AIS(num_temperatures=100, num_chains=100))(rbm, x)
    assert found.bound == "estimate"
    assert abs(apart(found, truth)) < 4
    assert float(found.diagnostics["r_hat"]) < 1.05
    upper = AIS(num_temperatures=50)(rbm, x)
    assert "~" in repr(Sandwich.between(found, upper, simulated=False))


def test_given_draws_are_taken_for_exact() -> None:
    rbm, x = make_rbm(6, 5), states(6)[:2]
    truth = Exact()(rbm, x)
    draws = rbm.parts.states().draw(200)
    rbm.parts.states = lambda: None  # type: ignore[method-assign]
    found = ReverseAIS(AIS(num_temperatures=100), draws)(rbm, x)
    assert found.bound == "lower"
    assert found.diagnostics["num_chains"] == 200
    assert abs(apart(found, truth)) < 4


@pytest.mark.slow
def test_real_data_without_closed_form_by_quadrature() -> None:
    double_well = Energy(lambda x: (x**4 / 4 - x.square()).sum((-1, -2)), (1, 1)).double()
    grid = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    log_f = torch.distributions.Normal(0.0, 1.0).log_prob(grid) - grid**4 / 4 + grid**2
    log_z = log_f.logsumexp(0) + (grid[1] - grid[0]).log()
    x = torch.tensor([0.3, -1.2], dtype=torch.float64)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(x) - x**4 / 4 + x**2 - log_z
    method = AIS(num_temperatures=50, num_chains=100)
    found = BDMC(method)(double_well, x.reshape(2, 1, 1))
    for side in (found.lower, found.upper):
        assert bool(((side.log_z - truth).abs() < 4 * side.std_error).all())
    assert found.lower.bound == "estimate"
    weights = (log_f - log_f.max()).exp()
    draws = grid[weights.multinomial(100, replacement=True)]
    given = ReverseAIS(method, draws.reshape(100, 1, 1))(double_well, x.reshape(2, 1, 1))
    assert given.bound == "lower"
    assert bool(((given.log_z - truth).abs() < 4 * given.std_error).all())


@pytest.mark.slow
def test_error_bars_cover_the_sum_and_the_bound_holds() -> None:
    torch.manual_seed(11)
    rbm = RBM(64, 20)
    with torch.no_grad():
        rbm.parts.weight.normal_(0, 0.3)
        rbm.parts.hidden_bias.normal_(-1, 1.0)
    x = torch.bernoulli(torch.full((1, 64), 0.3))
    truth = Exact()(rbm, x)
    estimator = ReverseAIS(AIS(num_temperatures=600, num_chains=100))
    found = [estimator(rbm, x, seed=seed) for seed in range(40)]
    errors = torch.stack([one.log_z[0] for one in found]) - truth.log_z[0]
    bars = torch.stack([one.std_error[0] for one in found])
    assert int((errors.abs() < 1.96 * bars).sum()) >= 34  # binomial, 95 % of 40
    assert errors.mean() < 3 * errors.std() / 40**0.5


@pytest.mark.slow
def test_an_interrupted_sandwich_goes_on(tmp_path: Path) -> None:
    rbm, x = make_rbm(6, 4), states(6)[:2]
    method = AIS(num_temperatures=20, checkpoint=tmp_path / "ais.pt")
    first, again = (BDMC(method)(rbm, x) for _ in range(2))
    assert torch.equal(first.gap, again.gap)
    assert len(list(tmp_path.iterdir())) == 2


def tilted(x: Tensor | None = None, y: Tensor | None = None) -> None:
    """N(y, 1) as a tilted standard normal: every covariate has its own partition function."""
    size = 1 if y is None else len(y)
    with pyro.plate("data", size):
        value = pyro.sample("x", dist.Normal(torch.zeros(size).double(), 1.0), obs=x)
        pyro.factor("energy", value * y)


X, Y = torch.tensor([0.3, 2.0]).double(), torch.tensor([0.5, -1.0]).double()


@pytest.mark.slow
def test_covariates_have_partition_functions_of_their_own() -> None:
    found = BDMC(AIS(num_temperatures=10, num_chains=100, num_pilots=16))(Program(tilted), X, Y)
    truth = dist.Normal(Y, 1.0).log_prob(X)
    for side in (found.lower, found.upper):
        assert bool(((side.log_z - truth).abs() < 4 * side.std_error).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReverseAIS(FEW, X)(Program(tilted), X, Y), "2 partition functions"),
        (lambda: ReverseAIS(num_moves=0), "num_moves"),
        (lambda: ReverseAIS(draws=torch.zeros(1, 4)), "at least 2 chains"),
        (lambda: ReverseAIS(draws=torch.zeros(5, 3))(make_rbm(), states(4)), r"chains, \*\[4\]"),
        (lambda: ReverseAIS(draws=torch.full((5, 2), torch.nan))(normal(), states(2)), "finite"),
        (lambda: BDMC(FEW, num_particles=3)(make_rbm(), states(4)), "num_particles=1"),
        (
            lambda: ReverseAIS()(Program(linear_gaussian(num_data=1)[0]), torch.zeros(1, 3)),
            "use AIS, and BDMC",
        ),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
