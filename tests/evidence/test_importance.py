"""Importance sampling, prior sampling and the ELBO against exact evidence.

Value, error bars, rates.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from evidence.case_programs import case
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from ppl_dgm import Program, fit
from ppl_dgm.evidence import ELBO, SMC, Exact, ImportanceSampling, Laplace, PriorSampling
from ppl_dgm.objectives import IWELBO

NOISE = 0.6
WEIGHTS = torch.tensor([[1.0, -0.5, 0.8], [0.3, 0.9, -0.4]])


def model(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS, NOISE).to_event(1), obs=x)


def make_guide(width):
    precision = torch.eye(2) + WEIGHTS @ WEIGHTS.T / NOISE**2

    def guide(x):
        mean = torch.linalg.solve(precision, WEIGHTS @ x.T / NOISE**2).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision / width**2))

    return guide


X = torch.tensor([[0.5, -1.0, 0.9], [2.0, 0.3, -1.1]])
TRUTH = (
    dist.MultivariateNormal(torch.zeros(3), WEIGHTS.T @ WEIGHTS + NOISE**2 * torch.eye(3))
    .log_prob(X)
    .double()
)


def replicated(row, count):
    """The same datum many times: every copy is an independent run."""
    return X[row : row + 1].expand(count, 3).contiguous()


def test_exact_importance_sampling_and_elbo_agree():
    program = Program(model, make_guide(1.3))
    exact = Exact()(program, X)
    assert torch.allclose(exact.log_z, TRUTH, atol=1e-5)
    assert exact.bound == "exact"
    assert exact.std_error.abs().max() == 0
    for estimator in (ImportanceSampling(4000), PriorSampling(40_000)):
        result = estimator(program, X)
        assert bool(((result.log_z - TRUTH).abs() < 4.5 * result.std_error).all())
        assert result.bound == "estimate"
        assert result.log_z.dtype == torch.float64
    elbo = ELBO(4000)(program, X)
    gap = 0.5 * (
        2 * 1.3**2 - 2 - 2 * math.log(1.3**2)
    )  # KL of a Gaussian 1.3 times too wide, in two dimensions
    assert bool(((elbo.log_z - (TRUTH - gap)).abs() < 4.5 * elbo.std_error).all())
    assert elbo.bound == "lower"


@pytest.mark.parametrize("estimator", [ImportanceSampling(300), ELBO(100)], ids=lambda e: e.name)
def test_intervals_cover(estimator):
    count = 2000
    program = Program(model, make_guide(1.3))
    result = estimator(program, replicated(0, count), seed=1)
    truth = TRUTH[0]
    if estimator.name == "ELBO":
        truth = truth - 0.5 * (2 * 1.3**2 - 2 - 2 * math.log(1.3**2))
    low, high = result.interval(0.95)
    covered = ((low < truth) & (truth < high)).double().mean()
    assert 0.90 < covered < 0.98
    assert result.total_std_error.item() == pytest.approx(
        result.log_z.std().item() * math.sqrt(count), rel=0.1
    )


def test_error_falls_as_the_square_root_of_the_number_of_particles():
    program, data = Program(model, make_guide(1.3)), replicated(0, 800)
    counts = torch.tensor([50.0, 200.0, 800.0, 3200.0])
    errors = [
        ImportanceSampling(int(k))(program, data).log_z.sub(TRUTH[0]).square().mean().sqrt()
        for k in counts
    ]
    slope = torch.tensor(errors).log().diff().sum() / counts.log().diff().sum()
    assert slope == pytest.approx(-0.5, abs=0.1)


def test_a_narrow_guide_is_flagged():
    result = ImportanceSampling(2000)(Program(model, make_guide(0.2)), X)
    assert result.diagnostics["pareto_k"].max() > 0.7
    assert not result.reliable
    assert "UNRELIABLE" in repr(result)
    assert ImportanceSampling(2000)(Program(model, make_guide(1.3)), X).reliable


@pytest.mark.parametrize("estimator", [Exact(), PriorSampling(10), Laplace(num_particles=10)])
def test_checks_leave_torchs_generator_alone(estimator):
    before = torch.get_rng_state()
    estimator(Program(model), X)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("estimator", [Exact(), PriorSampling(), Laplace(), SMC()])
@pytest.mark.parametrize("everything", [False, True])
def test_a_prior_with_an_exponent_is_refused(estimator, everything):
    """Draws follow p(z), but the joint density has p(z)^0.5.

    It is as in KL annealing, stopped half way.
    """

    def annealed(x):
        with poutine.scale(scale=0.5):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=0.5 if everything else 1.0), pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([3]).to_event(1), obs=x)

    with pytest.raises(
        ValueError,
        match=r"sites \['loc'.*have a scale.*no evidence",
    ):
        estimator(Program(annealed), X)


def test_seed_repeats_and_leaves_torchs_generator_alone():
    program = Program(model, make_guide(1.3))
    before = torch.get_rng_state()
    first, again, other = (ImportanceSampling(50)(program, X, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.log_z, again.log_z)
    assert not torch.equal(first.log_z, other.log_z)
    assert torch.equal(before, torch.get_rng_state())


def test_chunks_change_the_draws_but_not_the_answer():
    program = Program(model, make_guide(1.3))
    result = ImportanceSampling(4000, memory=20_000)(program, X)
    assert bool(((result.log_z - TRUTH).abs() < 4.5 * result.std_error).all())
    assert result.diagnostics["ess"].shape == (2,)


def fitted(name, autoguide):
    problem = case(name)
    guide = autoguide(problem.model)
    program = Program(problem.model, guide)
    fit(
        program, problem.args, IWELBO(10, gradient="stl"), steps=600, progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.03),
    )  # fmt: skip
    return program, problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bs_hier_normal_H0", "bs_hier_normal_H1"])
def test_known_evidence_by_importance_sampling_from_a_fitted_guide(name):
    program, problem = fitted(name, AutoMultivariateNormal)
    result = ImportanceSampling(50_000)(program, *problem.args)
    assert result.target == "dataset"
    assert result.log_z.shape == ()
    assert abs(result.log_z - problem.log_z) < 4 * result.std_error + 0.005
    assert result.std_error < 0.05


def test_conjugate_regression_by_importance_sampling():
    """A guide that is the normal-gamma posterior with a wider tail for the precision."""
    problem = case("radiata_x_density")
    y, c = problem.args[0], problem.args[1] - problem.args[1].mean()
    n, squares = len(y), c.square().sum()
    alpha, beta = (y.sum() + 0.06 * 3000) / (n + 0.06), ((c * y).sum() + 6 * 185) / (squares + 6)
    fixed = (
        y.square().sum()
        + 0.06 * 3000**2
        + 6 * 185**2
        - (n + 0.06) * alpha**2
        - (squares + 6) * beta**2
    )

    def guide(*_):
        tau = pyro.sample("tau", dist.Gamma(0.9 * (3 + n / 2), 0.9 * (2 * 300**2 + fixed / 2)))
        pyro.sample("alpha", dist.Normal(alpha, (tau * (n + 0.06)).rsqrt()))
        pyro.sample("beta", dist.Normal(beta, (tau * (squares + 6)).rsqrt()))

    result = ImportanceSampling(20_000)(problem.program(guide), *problem.args)
    assert abs(result.log_z - problem.log_z) < 4 * result.std_error + 1e-5
    assert result.std_error < 0.004


@pytest.mark.parametrize(
    "name",
    [
        "bs_betabinomial_tutorial",
        "pymc_beta_bernoulli_1",
        "pymc_beta_bernoulli_20",
        "eight_schools_posteriordb",
    ],
)
def test_known_evidence_by_prior_sampling(name):
    problem = case(name)
    result = PriorSampling(200_000)(problem.program(), *problem.args)
    assert abs(result.log_z - problem.log_z) < 4 * result.std_error + 1e-6


def test_the_weight_of_a_program_without_latents_is_exact():
    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(4)
    result = ImportanceSampling(10)(Program(plain), x)
    assert result.bound == "exact"
    assert torch.allclose(result.log_z, dist.Normal(0.0, 1.0).log_prob(x).double())
    assert result.std_error.max() < 1e-6


def arc(x: Tensor) -> None:
    """A thin arc: its mass is far wider than it looks from its middle."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
    pyro.sample("x", dist.Normal(z[..., 1] - z[..., 0] ** 2, 0.3), obs=x)


def middle(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(2), torch.full((2,), 0.4)).to_event(1))


ARC = -1.7969454  # by quadrature


@pytest.mark.parametrize(("particles", "seed"), [(1000, 4), (20_000, 2), (100_000, 14)])
def test_mass_beyond_all_draws_is_an_alarm(particles: int, seed: int) -> None:
    found = ImportanceSampling(particles)(Program(arc, middle), torch.zeros(()), seed=seed)
    assert float(found.diagnostics["pareto_k"]) < 0.7
    assert float(found.log_z) < ARC - 2 * float(found.std_error)
    assert any("no draw came" in warning for warning in found.warnings)


def test_programs_without_derivatives_are_sampled_all_the_same() -> None:
    def rounded(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("x", -(torch.tensor(z.detach().numpy()).round() - x).square())

    def fails_far_out(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        if bool((z.abs() > 8).any()):
            raise ValueError("too far out")
        pyro.factor("x", -((z - x) ** 2) / 200)

    for model, x in ((rounded, 0.0), (fails_far_out, 30.0)):
        assert torch.isfinite(PriorSampling(1000)(Program(model), torch.tensor(x)).log_z)


def test_draws_that_reach_the_posterior_raise_no_alarm() -> None:
    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def proposals(scale: float) -> Callable:
        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, scale))

        return guide

    x = torch.linspace(-2, 2, 40)
    for scale in (0.5**0.5, 0.8, 1.5):
        assert ImportanceSampling(500)(Program(local, proposals(scale)), x, seed=1).reliable
    assert PriorSampling(2000)(Program(arc), torch.zeros(()), seed=1).reliable


def shifted(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("seed", [0, 1])
def test_data_of_the_same_seed_are_not_the_draws_of_their_latents(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2000, dtype=torch.float64)
    found = PriorSampling(50)(Program(shifted), x, seed=seed)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert abs(float(found.total - truth.sum())) < 4 * float(found.total_std_error)


@pytest.mark.parametrize(("num_data", "reliable"), [(100, True), (20_000, False)])
def test_biases_of_many_data_are_an_alarm(num_data: int, reliable: bool) -> None:
    """Each is below its error by far; that of their sum is 8 errors too low."""
    x = torch.randn(num_data, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = PriorSampling(30)(Program(shifted), x)
    error = float(found.total - dist.Normal(0.0, 2**0.5).log_prob(x).sum())
    assert (abs(error) < 4 * float(found.total_std_error)) is reliable
    assert found.reliable is reliable
    assert any("too low by" in warning for warning in found.warnings) is not reliable
