"""Hierarchical models: schools, batters, funnels, varying slopes, item response."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.infer.reparam import AutoReparam, LocScaleReparam
from torch import Tensor

from acceptance.registry import (
    Example,
    enumerating,
    example,
    grid_log_integral,
    point,
    randn,
    uniform,
)

positive = dist.constraints.positive
EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def schools_evidence() -> float:
    """Log evidence of the eight schools, effects integrated out."""
    effects, errors = torch.tensor(EFFECTS).double(), torch.tensor(ERRORS).double()

    def density(mean: Tensor, u: Tensor) -> Tensor:
        scale = 25.0 * (u * math.pi / 2).tan()  # u is uniform where the scale is half Cauchy
        spread = (scale[:, None] ** 2 + errors**2).sqrt()
        seen = dist.Normal(mean[:, None], spread).log_prob(effects).sum(-1)
        return dist.Normal(0.0, 10.0).log_prob(mean) + seen

    return grid_log_integral(density, (-50.0, 60.0, 1000), (0.0, 1.0, 1000))


def schools(sigma: Tensor, y: Tensor) -> None:
    """The eight schools as the examples have them."""
    mean = pyro.sample("mu", dist.Normal(0.0, 10.0))
    scale = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("data", len(y)):
        effect = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mean + scale * effect, sigma), obs=y)


def schools_data() -> tuple[Tensor, Tensor]:
    return torch.tensor(ERRORS), torch.tensor(EFFECTS)


@example("eight_schools/svi.py")
def eight_schools_svi() -> Example:
    def guide(sigma: Tensor, y: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(10))
        scale = pyro.param("scale", 0.1 * torch.ones(10), positive)
        pyro.sample("mu", dist.Normal(loc[8], scale[8]))
        pyro.sample("tau", dist.LogNormal(loc[9], scale[9]))
        with pyro.plate("data", len(y)):
            pyro.sample("eta", dist.Normal(loc[:8], scale[:8]))

    return Example(schools, guide, schools_data(), truth=schools_evidence)


@example("eight_schools/mcmc.py")
def eight_schools_mcmc() -> Example:
    return Example(schools, AutoMultivariateNormal(schools), schools_data(), truth=schools_evidence)


HITS = torch.tensor([18.0, 17.0, 16.0, 11.0, 10.0, 7.0])
AT_BATS = torch.tensor([45.0, 45.0, 45.0, 45.0, 45.0, 45.0])


def batters() -> tuple[Tensor, Tensor]:
    return AT_BATS.to(torch.get_default_dtype()), HITS.to(torch.get_default_dtype())


def log_choose(total: Tensor, hits: Tensor) -> Tensor:
    return (total + 1).lgamma() - (hits + 1).lgamma() - (total - hits + 1).lgamma()


@example("baseball.py: fully pooled")
def fully_pooled() -> Example:
    def model(at_bats: Tensor, hits: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        with pyro.plate("num_players", len(at_bats)):
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)

    def truth() -> float:
        n, k = AT_BATS.double(), HITS.double()
        a, b = k.sum() + 1, (n - k).sum() + 1
        return (log_choose(n, k).sum() + a.lgamma() + b.lgamma() - (a + b).lgamma()).item()

    return Example(model, AutoNormal(model), batters(), truth=truth)


@example("baseball.py: not pooled")
def not_pooled() -> Example:
    def model(at_bats: Tensor, hits: Tensor) -> None:
        with pyro.plate("num_players", len(at_bats)):
            phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)

    truth = lambda: -6 * math.log(46.0)  # noqa: E731
    return Example(
        model, AutoNormal(model), batters(), truth=truth, options={"plate": "num_players"}
    )


@example("baseball.py: partially pooled")
def partially_pooled() -> Example:
    def model(at_bats: Tensor, hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("num_players", len(at_bats)):
            phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)

    def truth() -> float:
        n, k = AT_BATS.double()[:, None], HITS.double()[:, None]

        def density(m: Tensor, u: Tensor) -> Tensor:
            kappa = u ** (-1 / 1.5)  # u is uniform where kappa is Pareto
            seen = dist.BetaBinomial(m * kappa, (1 - m) * kappa, n)
            return seen.log_prob(k).sum(0)

        return grid_log_integral(density, (0.0, 1.0, 1000), (0.0, 1.0, 1000))

    return Example(model, AutoNormal(model), batters(), truth=truth)


@example("baseball.py: partially pooled with logit")
def partially_pooled_logit() -> Example:
    def model(at_bats: Tensor, hits: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("num_players", len(at_bats)):
            alpha = pyro.sample("alpha", dist.Normal(loc, scale))
            pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)

    return Example(model, AutoNormal(model), batters())


@example("baseball.py: hits of a Beta-Binomial")
def beta_binomial() -> Example:
    def model(at_bats: Tensor, hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        with pyro.plate("num_players", len(at_bats)):
            pyro.sample("obs", dist.BetaBinomial(20 * m, 20 * (1 - m), at_bats), obs=hits)

    def truth() -> float:
        n, k = AT_BATS.double()[:, None], HITS.double()[:, None]
        density = lambda m: dist.BetaBinomial(20 * m, 20 * (1 - m), n).log_prob(k).sum(0)  # noqa: E731
        return grid_log_integral(density, (0.0, 1.0, 20_000))

    return Example(model, AutoNormal(model), batters(), truth=truth)


@example("lkj.py")
def lkj() -> Example:
    def model(y: Tensor) -> None:
        dims, size = y.shape[1], len(y)
        theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(dims)).to_event(1))
        cholesky = pyro.sample("L_omega", dist.LKJCholesky(dims, torch.ones(())))
        scaled = torch.diag_embed(theta.sqrt()) @ cholesky
        with pyro.plate("observations", size):
            mean = torch.zeros(dims)
            pyro.sample("obs", dist.MultivariateNormal(mean, scale_tril=scaled), obs=y)

    return Example(model, AutoNormal(model), (randn(8, 3),), options={"plate": "observations"})


@example("tutorial: varying intercepts and slopes, reparameterised")
def varying_slopes() -> Example:
    def plain(group: Tensor, x: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        spread = pyro.sample("spread", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("groups", 3):
            beta = pyro.sample("beta", dist.Normal(mean, spread).to_event(1))
        with pyro.plate("data", len(x)):
            line = beta[..., group, 0] + beta[..., group, 1] * x
            pyro.sample("obs", dist.Normal(line, 0.5), obs=y)

    group, x = torch.arange(12) % 3, randn(12)
    model = poutine.reparam(plain, config={"beta": LocScaleReparam(0.0)})
    return Example(model, AutoNormal(model), (group, x, 0.5 * x + group + 0.3 * randn(12, seed=2)))


@example("tutorial: automatic reparameterisation")
def automatic_reparameterisation() -> Example:
    def plain(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            effect = pyro.sample("effect", dist.Normal(0.0, scale))
            pyro.sample("obs", dist.Normal(effect, 1.0), obs=y)

    data = 2 * randn(6)

    def truth() -> float:
        def density(u: Tensor) -> Tensor:
            spread = (1 + (2 * u).exp()).sqrt()[:, None]
            seen = dist.Normal(0.0, spread).log_prob(data.double()).sum(-1)
            return dist.Normal(0.0, 1.0).log_prob(u) + seen

        return grid_log_integral(density, (-8.0, 8.0, 4000))

    model = AutoReparam()(plain)
    return Example(model, AutoNormal(model), (data,), truth=truth)


def answers() -> tuple[Tensor, Tensor, Tensor]:
    """People, items and whether their answers were right."""
    people, items = torch.arange(24) // 4, torch.arange(24) % 4
    return people, items, (uniform(24) < 0.6).to(torch.get_default_dtype())


@example("item response: one parameter (Rasch)")
def rasch() -> Example:
    def model(people: Tensor, items: Tensor, right: Tensor) -> None:
        with pyro.plate("people", 6):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("items", 4):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(right)):
            logits = ability[..., people] - difficulty[..., items]
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=right)

    return Example(model, AutoLowRankMultivariateNormal(model, rank=2), answers())


@example("item response: two parameters")
def two_parameters() -> Example:
    def model(people: Tensor, items: Tensor, right: Tensor) -> None:
        with pyro.plate("people", 6):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("items", 4):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
            slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(right)):
            logits = slope[..., items] * (ability[..., people] - difficulty[..., items])
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=right)

    return Example(model, AutoDiagonalNormal(model), answers())


@example("item response: several guides in a list")
def guide_list() -> Example:
    def model(people: Tensor, items: Tensor, right: Tensor) -> None:
        spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
        with pyro.plate("people", 6):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("items", 4):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(right)):
            logits = spread * (ability[..., people] - difficulty[..., items])
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=right)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["ability", "spread"])))
    guide.append(AutoMultivariateNormal(poutine.block(model, expose=["difficulty"])))
    return Example(model, guide, answers())


@example("tutorial autoguides: structured")
def structured() -> Example:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            effect = pyro.sample("effect", dist.Normal(mean, scale))
            pyro.sample("obs", dist.Normal(effect, 1.0), obs=y)

    conditionals = {"mean": "normal", "scale": "delta", "effect": "normal"}
    dependencies = {"effect": {"mean": "linear"}}
    guide = AutoStructured(model, conditionals=conditionals, dependencies=dependencies)
    return Example(model, guide, (randn(5),))


@example("NumPyro: UCB admissions, a mixed-effects logit")
def admissions() -> Example:
    def model(dept: Tensor, male: Tensor, applied: Tensor, admit: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(torch.ones(2)).to_event(1))
        corr = pyro.sample("L_rho", dist.LKJCholesky(2, torch.tensor(2.0)))
        tril = sigma.unsqueeze(-1) * corr
        with pyro.plate("dept", 3):
            effect = pyro.sample("effect", dist.MultivariateNormal(mean, scale_tril=tril))
        logits = effect[..., dept, 0] + effect[..., dept, 1] * male
        with pyro.plate("data", len(admit)):
            pyro.sample("admit", dist.Binomial(applied, logits=logits), obs=admit)

    dept, male = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1.0, 0.0] * 3)
    applied, admit = torch.tensor([80.0, 11, 56, 3, 33, 59]), torch.tensor([51.0, 9, 35, 2, 12, 20])
    return Example(model, AutoNormal(model, init_scale=0.05), (dept, male, applied, admit))


@example("NumPyro: Neal's funnel")
def funnel() -> Example:
    def model() -> None:
        y = pyro.sample("y", dist.Normal(0.0, 3.0))
        x = pyro.sample("x", dist.Normal(torch.zeros(4), (y / 2).exp().unsqueeze(-1)).to_event(1))
        pyro.factor("near", -0.5 * (x**2).sum(-1))

    def truth() -> float:
        def density(y: Tensor) -> Tensor:  # E exp(-x^2 / 2) is 1 / sqrt(1 + exp(y)) for each x
            return dist.Normal(0.0, 3.0).log_prob(y) - 2.0 * torch.log1p(y.exp())

        return grid_log_integral(density, (-30.0, 30.0, 20_000))

    return Example(model, AutoNormal(model), (), truth=truth)


@example("NumPyro: annotation, a binomial item difficulty")
def annotation() -> Example:
    def model(positions: Tensor, labels: Tensor) -> None:
        prevalence = pyro.sample("pi", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("annotators", 3), pyro.plate("classes", 2):
            right = pyro.sample("beta", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("items", len(labels), dim=-2):
            on = {"enumerate": "parallel"}
            c = pyro.sample("c", dist.Categorical(prevalence), infer=on)
            with pyro.plate("position", 3, dim=-1):
                pyro.sample("y", dist.Categorical(right[c, positions]), obs=labels)

    labels = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 1]])
    guide = point(model, "pi", "beta")
    return Example(model, guide, (torch.arange(3), labels), enumerating(2))
