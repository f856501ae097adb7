"""The flat unconstrained view of a program: round trips, Jacobians, integrals, guides."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.sampling.unconstrained import Unconstrained

FLOAT = torch.float64
X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=FLOAT)
TOSSES = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0], dtype=FLOAT)


def full(*values: float) -> Tensor:
    return torch.tensor(values, dtype=FLOAT)


ONE, ZERO = torch.tensor(1.0, dtype=FLOAT), torch.tensor(0.0, dtype=FLOAT)


def beta(x: Tensor | None = None) -> None:
    rate = pyro.sample("rate", dist.Beta(2 * ONE, 3 * ONE))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(rate), obs=x)


def half_normal(x: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        scale = pyro.sample("scale", dist.HalfNormal(2 * ONE))
        pyro.sample("x", dist.Normal(ZERO, scale + 0.1), obs=x)


def dirichlet(x: Tensor | None = None) -> None:
    probs = pyro.sample("probs", dist.Dirichlet(full(1.0, 2.0, 3.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(probs), obs=x)


def pair(x: Tensor | None = None) -> None:
    """A positive and an interval-bound latent, the likelihood depending on both."""
    scale = pyro.sample("scale", dist.LogNormal(ZERO, ONE))
    mean = pyro.sample("mean", dist.Uniform(-2 * ONE, 2 * ONE))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def nested(x: Tensor | None = None) -> None:
    """Each datum has a positive latent and three interval-bound ones, in a plate of their own."""
    with pyro.plate("data", len(x), dim=-1):
        scale = pyro.sample("scale", dist.HalfNormal(ONE))
        with pyro.plate("repeats", 3, dim=-2):
            level = pyro.sample("level", dist.Beta(2 * ONE, 2 * ONE))
        pyro.sample("x", dist.Normal(level.sum(-2), scale), obs=x)


def vectors(x: Tensor | None = None) -> None:
    """Each datum has a point of the simplex and a correlation matrix."""
    with pyro.plate("data", len(x)):
        probs = pyro.sample("probs", dist.Dirichlet(full(1.0, 2.0, 3.0)))
        corr = pyro.sample("corr", dist.LKJCholesky(3, ONE))
        pyro.sample("x", dist.Normal(probs[..., 0] + corr[..., 1, 0], ONE), obs=x)


def mixtures(x: Tensor | None = None) -> None:
    """Each datum has a positive scale and a vector of the plane, both from mixtures."""
    evenly = dist.Categorical(full(0.5, 0.5))
    with pyro.plate("data", len(x)):
        scale = pyro.sample(
            "scale", dist.MixtureSameFamily(evenly, dist.LogNormal(full(-1.0, 1.0), ONE))
        )
        means = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=FLOAT)
        mean = pyro.sample(
            "mean", dist.MixtureSameFamily(evenly, dist.Normal(means, ONE).to_event(1))
        )
        pyro.sample("x", dist.Normal(mean.sum(-1), scale), obs=x)


MODELS: dict[str, tuple[Callable, Tensor, tuple, int]] = {
    "beta": (beta, TOSSES, (), 1),
    "half normal": (half_normal, X, (4,), 1),
    "dirichlet": (dirichlet, torch.tensor([0, 1, 1, 2]), (), 2),
    "pair": (pair, X, (), 2),
    "nested": (nested, X, (4,), 4),
    "vectors": (vectors, X, (4,), 2 + 3),
    "mixtures": (mixtures, X, (4,), 1 + 2),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple:
    model, data, batch, dim = MODELS[request.param]
    return Unconstrained(Program(model).bind(data)), batch, dim


# ---- coordinates ---------------------------------------------------------------------------------


def test_shapes(case: tuple) -> None:
    target, batch, dim = case
    assert (target.batch, target.dim) == (batch, dim)
    point = target.sample_prior(5)
    assert point.shape == (5, *batch, dim)
    assert point.dtype == target.dtype == FLOAT
    assert target.log_joint(point).shape == (5, *batch)


def test_round_trip(case: tuple) -> None:
    target, batch, dim = case
    point = torch.randn(6, *batch, dim, dtype=FLOAT)
    values = target.constrain(point)
    assert torch.allclose(target.unconstrain(values), point, atol=1e-6)
    for latent in target.bound.structure.model_latents:
        assert bool(latent.support.check(values[latent.name]).all())


def test_densities_are_those_of_the_program(case: tuple) -> None:
    """log p(y) - log p(v(y)) is log det dv/dy, by autodiff of minimal coordinates."""
    target, batch, dim = case
    point = torch.randn(2, *batch, dim, dtype=FLOAT)
    values = target.constrain(point)
    constrained = target.bound.log_joint(values)
    split = target.split(point)
    jacobian = split.prior - constrained.prior
    assert torch.allclose(split.likelihood, constrained.likelihood)
    for row in (0, 1):
        found = autodiff_log_det(target, point[row])
        assert torch.allclose(jacobian[row], found, atol=1e-7)


def autodiff_log_det(target: Unconstrained, point: Tensor) -> Tensor:
    """log |det dv/dy| of one chain, each datum by itself.

    Simplices and matrices go by their free entries.
    """

    def free(y: Tensor) -> Tensor:
        values = target.constrain(y.unsqueeze(0))
        parts = []
        for latent in target.bound.structure.model_latents:
            value = values[latent.name][0]
            if latent.name == "probs":
                value = value[..., :-1]
            if latent.name == "corr":
                value = value[..., [1, 2, 2], [0, 0, 1]]
            value = value.movedim(latent.batch_dim - 1, 0) if target.batch else value
            parts.append(value.reshape((*target.batch, -1)))
        return torch.cat(parts, -1)

    full_jacobian = torch.autograd.functional.jacobian(free, point)
    if not target.batch:
        return torch.linalg.slogdet(full_jacobian).logabsdet
    rows = [torch.linalg.slogdet(full_jacobian[i, :, i]).logabsdet for i in range(target.batch[0])]
    for i in range(target.batch[0]):  # data do not touch each other
        off = full_jacobian[i].clone()
        off[:, i] = 0
        assert off.abs().max() == 0
    return torch.stack(rows)


def test_gradients(case: tuple) -> None:
    target, batch, dim = case
    point = torch.randn(1, *batch, dim, dtype=FLOAT).requires_grad_()
    assert torch.autograd.gradcheck(target.log_joint, (point,), eps=1e-6, atol=1e-5)


# ---- integrals -----------------------------------------------------------------------------------


def line(num: int = 4001, reach: float = 25.0) -> Tensor:
    return torch.linspace(-reach, reach, num, dtype=FLOAT)


def test_integral_with_a_beta_latent() -> None:
    grid = line()
    values = Unconstrained(Program(beta).bind(TOSSES)).log_joint(grid.unsqueeze(-1))
    heads, tails = TOSSES.sum().item(), (1 - TOSSES).sum().item()
    truth = sum(math.lgamma(v) for v in (2 + heads, 3 + tails)) - math.lgamma(5 + heads + tails)
    truth -= math.lgamma(2) + math.lgamma(3) - math.lgamma(5)
    assert torch.trapezoid(values.exp(), grid).log().item() == pytest.approx(truth, abs=1e-8)


def test_integral_of_each_datum() -> None:
    """Over the logarithm of the scale, against a quadrature over the scale itself."""
    grid = line()
    point = grid.reshape(-1, 1, 1).expand(-1, 4, 1)
    values = Unconstrained(Program(half_normal).bind(X)).log_joint(point)
    scale = torch.linspace(1e-6, 20, 200_001, dtype=FLOAT).unsqueeze(-1)
    prior = torch.distributions.HalfNormal(2 * ONE).log_prob(scale)
    joint = prior + torch.distributions.Normal(ZERO, scale + 0.1).log_prob(X)
    truth = torch.trapezoid(joint.exp(), scale.squeeze(-1), dim=0).log()
    assert torch.allclose(torch.trapezoid(values.exp(), grid, dim=0).log(), truth, atol=1e-5)


def test_integral_over_a_simplex() -> None:
    """Two dimensions of stick-breaking logits against the Dirichlet-categorical evidence."""
    data = torch.tensor([0, 1, 1, 2])
    grid = line(801, 20.0)
    point = torch.cartesian_prod(grid, grid)
    values = Unconstrained(Program(dirichlet).bind(data)).log_joint(point).exp().reshape(801, 801)
    integral = torch.trapezoid(torch.trapezoid(values, grid), grid)
    prior, counts = full(1.0, 2.0, 3.0), full(1.0, 2.0, 1.0)
    truth = torch.lgamma(prior + counts).sum() - torch.lgamma((prior + counts).sum())
    truth = truth - torch.lgamma(prior).sum() + torch.lgamma(prior.sum())
    assert integral.log().item() == pytest.approx(truth.item(), abs=1e-6)


def test_integral_of_two_latents() -> None:
    grid = line(1201, 22.0)
    values = (
        Unconstrained(Program(pair).bind(X))
        .log_joint(torch.cartesian_prod(grid, grid))
        .exp()
        .reshape(1201, 1201)
    )
    scale, mean = (
        torch.linspace(1e-3, 40, 8001, dtype=FLOAT),
        torch.linspace(-2, 2, 401, dtype=FLOAT),
    )
    joint = torch.distributions.LogNormal(ZERO, ONE).log_prob(scale).unsqueeze(-1) - math.log(4)
    for x in X:
        joint = joint + torch.distributions.Normal(mean, scale.unsqueeze(-1)).log_prob(x)
    truth = torch.trapezoid(torch.trapezoid(joint.exp(), mean), scale)
    found = torch.trapezoid(torch.trapezoid(values, grid), grid)
    assert (found / truth).log().abs() < 1e-4


@pytest.mark.parametrize("joint", [False, True])
def test_angles_have_one_turn(joint: bool) -> None:
    """A von Mises density repeats itself for ever on the reals, which Pyro calls its support."""

    def model() -> None:
        parts = 1.5 * torch.ones(2, dtype=FLOAT), 1.5 * torch.ones(2, dtype=FLOAT)
        angle = dist.SineBivariateVonMises(*full(2.0, -1.0), *full(1.0, 0.5), correlation=0.2 * ONE)
        pyro.sample("angle", angle if joint else dist.VonMises(*parts).to_event(1))
        pyro.factor("none", ZERO)

    grid = line(801, 25.0)
    target = Unconstrained(Program(model).bind())
    values = target.log_joint(torch.cartesian_prod(grid, grid)).exp().reshape(801, 801)
    assert torch.trapezoid(torch.trapezoid(values, grid), grid).log().abs() < 1e-3
    points = target.sample_prior(100)
    assert torch.allclose(target.unconstrain(target.constrain(points)), points)


# ---- guides --------------------------------------------------------------------------------------


def pair_guide(x: Tensor) -> None:
    pyro.sample("scale", dist.LogNormal(0.3 * ONE, 0.5 * ONE))
    pyro.sample("mean", dist.Uniform(-2 * ONE, 2 * ONE))


def test_guides_in_unconstrained_coordinates() -> None:
    target = Unconstrained(Program(pair, pair_guide).bind(X))
    point, log_q = target.sample_guide(7)
    truth = torch.distributions.Normal(0.3 * ONE, 0.5 * ONE).log_prob(point[:, 0])
    logistic = torch.nn.functional.logsigmoid(point[:, 1]) + torch.nn.functional.logsigmoid(
        -point[:, 1]
    )
    assert torch.allclose(log_q, truth + logistic, atol=1e-8)
    assert torch.allclose(target.log_guide(point), log_q, atol=1e-8)


def half_normal_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("scale", dist.LogNormal(x, 0.5 * ONE))


def test_guides_of_each_datum() -> None:
    target = Unconstrained(Program(half_normal, half_normal_guide).bind(X))
    point = torch.randn(5, 4, 1, dtype=FLOAT)
    truth = torch.distributions.Normal(X, 0.5 * ONE).log_prob(point.squeeze(-1))
    assert torch.allclose(target.log_guide(point), truth, atol=1e-8)


@pytest.mark.parametrize(
    "kind",
    [
        "AutoNormal",
        "AutoMultivariateNormal",
        "AutoDiagonalNormal",
        "AutoLowRankMultivariateNormal",
        "AutoIAFNormal",
    ],
)
def test_autoguides(kind: str) -> None:
    """log_guide of its own draws is their density, and weights are unbiased.

    The latter is seen against quadrature.
    """
    guide = getattr(autoguide, kind)(pair)
    program = Program(pair, guide).initialise(X)
    target = Unconstrained(program.bind(X))
    with torch.no_grad():
        point, log_q = target.sample_guide(50)
        assert torch.allclose(target.log_guide(point), log_q, atol=1e-5)
        other = point + 0.1
        assert not torch.allclose(target.log_guide(other), log_q, atol=1e-3)


def test_an_autoguides_density_integrates_to_one() -> None:
    guide = autoguide.AutoMultivariateNormal(pair, init_scale=0.7)
    program = Program(pair, guide).initialise(X)
    target = Unconstrained(program.bind(X))
    grid = torch.linspace(-9, 9, 301)
    with torch.no_grad():
        density = target.log_guide(torch.cartesian_prod(grid, grid)).exp().reshape(301, 301)
    assert torch.trapezoid(torch.trapezoid(density, grid), grid).item() == pytest.approx(
        1.0, abs=1e-3
    )


def test_the_prior_proposes_where_there_is_no_guide() -> None:
    target = Unconstrained(Program(pair).bind(X))
    point, log_q = target.sample_guide(6)
    assert torch.allclose(target.split(point).prior, log_q, atol=1e-7)
    assert torch.allclose(target.log_guide(point), log_q, atol=1e-7)


def test_summed_out_latents_are_no_coordinates() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(full(0.3, 0.7)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(full(-2.0, 2.0)[k], ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=x)

    target = Unconstrained(Program(model).bind(X))
    assert target.dim == 1
    grid = line()
    values = target.log_joint(grid.reshape(-1, 1, 1).expand(-1, 4, 1)).exp()
    parts = torch.distributions.Normal(full(-2.0, 2.0), math.sqrt(2.0) * ONE).log_prob(
        X.unsqueeze(-1)
    )
    truth = (full(0.3, 0.7).log() + parts).logsumexp(-1)
    assert torch.allclose(torch.trapezoid(values, grid, dim=0).log(), truth, atol=1e-6)


# ---- errors --------------------------------------------------------------------------------------


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Poisson(ONE))
        pyro.sample("x", dist.Normal(k, ONE), obs=x)


def moving_support(x: Tensor) -> None:
    width = pyro.sample("width", dist.LogNormal(ZERO, ONE))
    z = pyro.sample("z", dist.Uniform(ZERO, width))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, ONE), obs=x)


def sequential(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(ZERO, ONE))
        pyro.sample(f"x{i}", dist.Normal(z, ONE), obs=x[i])


def without_latents(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(ZERO, ONE), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (discrete, "\\['k'\\] are discrete.*enumerate.*ImportanceSampling"),
        (moving_support, "support .* of latent 'z' depends on other latents.*pyro.deterministic"),
        (sequential, "data plate 'data' is sequential.*with pyro.plate"),
        (without_latents, "no latents.*Exact"),
    ],
)
def test_errors(model: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unconstrained(Program(model).bind(X))


def test_guides_of_unknown_density_say_so() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            hidden = pyro.sample("hidden", dist.Normal(ZERO, ONE), infer={"is_auxiliary": True})
            pyro.sample(
                "scale", dist.Delta((2 * hidden).exp(), log_density=-math.log(2) - 2 * hidden)
            )

    target = Unconstrained(Program(half_normal, guide).bind(X))
    with pytest.raises(
        ValueError, match="\\['hidden'\\] are not its unconstrained latents.*AutoNormal"
    ):
        target.log_guide(target.sample_prior(2))


def test_mixture_of_intervals_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Uniform(full(0.0, 0.0), full(3.0, 3.0))
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(full(0.5, 0.5)), parts))
            pyro.sample("x", dist.Normal(z, ONE), obs=x)

    with pytest.raises(ValueError, match="mix standardised components"):
        Unconstrained(Program(model).bind(X))
