"""Laplace's approximation against quadratic forms, and corrected against the cases."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.case_programs import FLOAT, case
from evidence.kind_programs import KINDS
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import Exact, Laplace, PriorSampling
from ppl_dgm.sampling.climbing import climb, hessian_of
from ppl_dgm.sampling.convergence import SKEW_FACTOR
from ppl_dgm.sampling.defended import Weighted, controlled_mean
from ppl_dgm.sampling.memory import AllocationCounter


def regression(x: Tensor | None = None) -> None:
    """A linear-Gaussian program, for which the approximation is exact."""
    design = torch.linspace(-1, 1, 12, dtype=FLOAT).reshape(6, 2)
    w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=FLOAT), 3.0).to_event(1))
    with pyro.plate("data", 6):
        pyro.sample("x", dist.Normal((w * design).sum(-1), 0.5), obs=x)


def two_modes(x: Tensor | None = None) -> None:
    """A factor with modes at -4 (a quarter) and 4 (three quarters), total 1."""
    reference = dist.Normal(torch.zeros((), dtype=FLOAT), 6.0)
    z = pyro.sample("z", reference)
    left = dist.Normal(-4.0, 0.5).log_prob(z) + math.log(0.25)
    right = dist.Normal(4.0, 1.0).log_prob(z) + math.log(0.75)
    pyro.factor("target", torch.logaddexp(left, right) - reference.log_prob(z))


def test_exact_where_the_posterior_is_normal():
    x = torch.linspace(0, 1, 6, dtype=FLOAT)
    truth = Exact()(Program(regression), x).log_z
    assert torch.allclose(Laplace(num_particles=0)(Program(regression), x).log_z, truth, atol=1e-6)


def test_every_datum_has_its_own_mode():
    def local(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=FLOAT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    x = torch.linspace(-5, 5, 9, dtype=FLOAT)
    result = Laplace(num_particles=0)(Program(local), x)
    truth = dist.Normal(torch.zeros((), dtype=FLOAT), 1.5).log_prob(x)
    assert torch.allclose(result.log_z, truth, atol=1e-6)
    assert bool((result.diagnostics["num_modes"] == 1).all())


def test_all_modes_are_counted():
    result = Laplace(num_particles=0)(Program(two_modes))
    assert int(result.diagnostics["num_modes"]) == 2
    assert abs(float(result.log_z)) < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "bs_betabinomial_tutorial",
        "pymc_beta_bernoulli_20",
        "bs_sleep_jss_H1",
        "tfp_ais_loggamma",
        pytest.param("radiata_x_density", marks=pytest.mark.slow),
    ],
)
def test_importance_correction_finds_the_cases(name):
    known = case(name)
    result = Laplace()(known.program(), *known.args)
    assert abs(float(result.log_z) - known.log_z) < 4 * float(result.std_error) < 0.1
    assert result.reliable


def test_plain_approximation_has_no_error_bar():
    known = case("bs_betabinomial_tutorial")
    assert math.isnan(float(Laplace(num_particles=0)(known.program(), *known.args).std_error))


@pytest.mark.parametrize("unit", [1e-12, 1e-8, 1e8])
def test_units_do_not_matter(unit: float) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2 * unit))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, unit), obs=x)

    x = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    found = Laplace(num_particles=0)(Program(model), x * unit)
    covariance = torch.eye(4, dtype=torch.float64) + 4
    truth = dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(x)
    assert found.log_z.item() == pytest.approx(truth.item() - 4 * math.log(unit), abs=1e-6)


def test_a_density_without_mode_is_withheld():
    known = case("eight_schools_posteriordb")
    result = Laplace(num_starts=4, num_steps=40)(known.program(), *known.args)
    assert any(warning.startswith("withheld") for warning in result.warnings)
    assert math.isnan(float(result.log_z))


def test_climbing_finds_the_bottom_of_a_valley():
    def banana(y: Tensor) -> Tensor:
        return -((1 - y[..., 0]).square() + 100 * (y[..., 1] - y[..., 0].square()).square())

    start = torch.tensor([[-1.2, 1.0], [2.0, -2.0], [0.0, 0.0]], dtype=FLOAT)
    assert torch.allclose(climb(banana, start, 200), torch.ones(3, 2, dtype=FLOAT), atol=1e-4)


def test_hessian_is_that_of_autodiff():
    def density(y: Tensor) -> Tensor:
        return (y[..., 0] * y[..., 1].square()).sin() - y.square().sum(-1)

    point = torch.randn(3, 2, dtype=FLOAT)
    expected = torch.stack([torch.autograd.functional.hessian(density, row) for row in point])
    assert torch.allclose(hessian_of(density, point)[2], expected)


def test_undefined_second_derivatives_are_differences():
    """Those of logaddexp are NaN where its terms are more than 709 nats apart."""

    def two(y: Tensor) -> Tensor:
        near = -y.square().sum(-1)
        return torch.logaddexp(near, -500 * (y - 3).square().sum(-1))

    point = 0.1 * torch.randn(3, 2, dtype=FLOAT)
    expected = (-2 * torch.eye(2, dtype=FLOAT)).expand(3, 2, 2)
    assert torch.allclose(hessian_of(two, point)[2], expected, atol=1e-6)


def test_modes_where_autodiff_is_undefined_are_kept():
    (known,) = (known for known in KINDS if known.name == "spike_and_slab")
    found = Laplace(num_starts=48)(known.program())
    assert found.diagnostics["num_modes"] == 2
    assert abs(float(found.log_z) - known.log_z) < 4 * float(found.std_error) < 0.1
    assert found.reliable


@pytest.mark.parametrize(
    "far",
    [1e4, 1e6, *(pytest.param(far, marks=pytest.mark.slow) for far in (1e3, 3e3, 3e4))],
)
def test_prior_and_data_far_apart_have_a_mode_each(far: float):
    """A Cauchy variable and its noisy copy: half of the posterior is at the copy."""

    def copied(x: Tensor) -> None:
        z = pyro.sample("z", dist.Cauchy(torch.zeros((), dtype=FLOAT), 1.0))
        pyro.sample("x", dist.Cauchy(z, torch.ones((), dtype=FLOAT)), obs=x)

    x = torch.tensor(far, dtype=FLOAT)
    found = Laplace(num_particles=20_000)(Program(copied), x)
    truth = dist.Cauchy(torch.zeros((), dtype=FLOAT), 2.0).log_prob(x)
    assert found.diagnostics["num_modes"] == 2
    assert abs(float(found.log_z - truth)) < 4 * float(found.std_error) < 0.6
    prior = PriorSampling(20_000)(Program(copied), x)
    assert float(prior.log_z - truth) == pytest.approx(-math.log(2), abs=0.05)
    assert any("no draw came near" in warning for warning in prior.warnings)


@pytest.mark.slow
def test_intervals_cover():
    z = torch.stack(
        [
            (r.log_z / r.std_error)
            for r in (Laplace(num_particles=400)(Program(two_modes), seed=s) for s in range(100))
        ]
    )
    assert 0.90 <= float((z.abs() < 1.96).double().mean()) <= 0.99


@pytest.mark.parametrize("settings", [{"num_starts": 0}, {"num_steps": 0}, {"num_particles": -1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected at least"):
        Laplace(**settings)


@pytest.mark.slow
def test_many_modes_take_more_starts():
    known = case("dynesty_eggbox")
    found = Laplace(num_starts=48, num_steps=80, num_particles=20_000)(known.program())
    assert found.diagnostics["num_modes"] == 18
    assert abs(float(found.log_z) - known.log_z) < 4 * float(found.std_error) < 0.1


def test_modes_found_by_few_starts_each_raise_an_alarm():
    found = Laplace(num_starts=8, num_particles=200)(case("dynesty_eggbox").program())
    assert any("others are missed" in warning for warning in found.warnings)
    assert Laplace(num_particles=200)(Program(two_modes)).reliable


def test_two_samples_of_fixed_sizes_have_a_stratified_error() -> None:
    """Against the spread of the estimate over many repetitions of both samples."""
    weights = torch.cat([torch.randn(300, 4000) * 0.3, torch.randn(100, 4000) * 0.5 + 1.0]).exp()
    errors = controlled_mean(weights.double(), torch.ones(400, 4000).double(), 100)[1]
    assert errors.mean().item() == pytest.approx(weights.mean(0).std().item(), rel=0.05)


@pytest.mark.parametrize(("count", "beyond"), [(8, 0.035), (20, 0.015), (400, 0.01)])
def test_errors_of_few_controlled_draws_cover(count: int, beyond: float) -> None:
    """A line through few draws runs close to them all: 15 % lay beyond three errors."""
    torch.manual_seed(0)
    normal, wide, prior = dist.Normal(0.0, 1.0), dist.StudentT(5.0), dist.Normal(0.0, 2.0)
    few = count // 4
    x = torch.cat([wide.sample((count - few, 4000)), prior.sample((few, 4000))]).double()
    log_q = torch.logaddexp(wide.log_prob(x) + math.log(0.75), prior.log_prob(x) + math.log(0.25))
    skewed = dist.Gumbel(-0.5, 1.0).log_prob(x)
    weights, control = (skewed - log_q).exp(), (normal.log_prob(x) - log_q).exp()
    mean, error, _ = controlled_mean(weights, control, few)
    assert ((mean - 1).abs() > 3 * error).double().mean() < beyond
    assert (mean - 1).square().mean() < 1.5 * error.square().mean()


def test_the_skewness_is_that_of_what_the_control_leaves() -> None:
    """Tails that the normal lacks: 0.37 % lay beyond three errors, widened for the weights' own."""
    torch.manual_seed(0)
    normal, wide, prior = dist.Normal(0.0, 1.0), dist.StudentT(5.0), dist.StudentT(3.0, 0.0, 4.0)
    x = torch.cat([wide.sample((75, 20_000)), prior.sample((25, 20_000))]).double()
    log_q = torch.logaddexp(wide.log_prob(x) + math.log(0.75), prior.log_prob(x) + math.log(0.25))
    log_w, log_n = (p.log_prob(x) - log_q for p in (dist.Laplace(0.0, 0.8), normal))
    log_z, error, found = Weighted(log_w, log_n, 25, torch.zeros_like(x)).summarise()
    widened = error * (1 + SKEW_FACTOR * found["skewness"])
    assert (log_z.abs() > 3 * widened).double().mean() < 0.003


def beta_binomial(heads: float, size: int) -> float:
    """Log evidence of a number of heads under a Beta(2, 1) prior."""
    heads, tails = torch.tensor(heads).double(), torch.tensor(size - heads).double()
    pairs = (1 + heads, 1 + tails), (2 + heads, 1 + tails), (torch.tensor(2.0), torch.tensor(1.0))
    one, posterior, prior = (a.lgamma() + b.lgamma() - (a + b).lgamma() for a, b in pairs)
    return float(posterior - prior - one) - math.log1p(size)


def test_normals_at_the_modes_are_a_control_variate() -> None:
    """Of many data the posterior is nearly normal; of few its error bar covers as well."""
    for size, error in ((20, 2e-3), (20_000, 1e-4)):
        heads = torch.tensor(0.3 * size)

        def model(x: Tensor, size: int = size) -> None:
            p = pyro.sample("p", dist.Beta(2.0, 1.0))
            pyro.sample("x", dist.Binomial(size, p), obs=x)

        truth, program = beta_binomial(0.3 * size, size), Program(model)
        found = [Laplace()(program, heads, seed=seed) for seed in range(20)]
        errors = torch.stack([one.std_error for one in found])
        scores = torch.stack([one.log_z - truth for one in found]) / errors
        assert errors.max() < error
        assert scores.square().mean().sqrt() == pytest.approx(1.0, abs=4 / math.sqrt(40))


def test_too_few_particles_for_an_error_bar_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0, or at least 8"):
        Laplace(num_particles=3)


def test_copies_of_a_mode_are_no_components() -> None:
    """Forty-eight starts at one mode of 30 dimensions: draws of all components took gigabytes."""

    def wide() -> None:
        reference = dist.Normal(torch.zeros(30, dtype=FLOAT), 2.0).to_event(1)
        z = pyro.sample("z", reference)
        pyro.factor("target", dist.Normal(0.5, 1.0).log_prob(z).sum(-1) - reference.log_prob(z))

    with AllocationCounter() as counter:
        found = Laplace(48, num_particles=5000)(Program(wide))
    assert int(found.diagnostics["num_modes"]) == 1
    assert counter.bytes < 1.5 * 2**30
    assert abs(float(found.log_z)) < 4 * float(found.std_error)


def test_no_importance_step_where_there_is_no_mode() -> None:
    known = case("eight_schools_posteriordb")
    found = Laplace(num_starts=4, num_steps=40)(known.program(), *known.args)
    assert "pareto_k" not in found.diagnostics


def test_starts_that_have_arrived_cost_nothing() -> None:
    """One start far off in a valley, the others at the optimum: only the one goes on."""
    sizes: list[int] = []

    def banana(y: Tensor) -> Tensor:
        sizes.append(len(y))
        return -((1 - y[..., 0]).square() + 100 * (y[..., 1] - y[..., 0].square()).square())

    start = torch.tensor([[-1.2, 1.0], *[[1.0, 1.0]] * 9], dtype=FLOAT)
    end = climb(banana, start, 200)
    assert torch.allclose(end, torch.ones(10, 2, dtype=FLOAT), atol=1e-4)
    assert sorted(sizes)[len(sizes) // 2] == 1


def test_tails_that_no_draw_reached_are_walked_to() -> None:
    """A curved posterior of two components, 0.28 nats off at an error bar of 0.04."""
    known = case("bs_ier_k2")
    found = Laplace()(known.program(), *known.args)
    assert float(found.log_z) - known.log_z < -4 * float(found.std_error)
    assert any("lies where no draw came" in text for text in found.warnings)


def test_scales_of_coordinates_do_not_hide_modes():
    """Two coefficients, of 1e-8 and of 1e8: no climb reached the mode."""
    unit = torch.tensor([1e-8, 1e8], dtype=FLOAT)
    design = torch.stack([torch.ones(9), torch.linspace(-1, 1, 9)], 1).double()

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=FLOAT), unit).to_event(1))
        with pyro.plate("data", 9):
            pyro.sample("x", dist.Normal(((w / unit).unsqueeze(-2) * design).sum(-1), 0.5), obs=x)

    x = torch.linspace(0, 2, 9, dtype=FLOAT) ** 2
    covariance = design @ design.T + 0.25 * torch.eye(9)
    truth = torch.distributions.MultivariateNormal(torch.zeros(9).double(), covariance).log_prob(x)
    found = Laplace(num_starts=8)(Program(model), x, seed=0)
    assert found.reliable
    assert abs(float(found.log_z - truth)) < 0.01
