"""Regressions: sparse, robust, ordinal, censored, zero-inflated, Gaussian processes."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from acceptance.registry import (
    Example,
    enumerating,
    example,
    grid_log_integral,
    nothing,
    over,
    randn,
    uniform,
)

positive = dist.constraints.positive


def design() -> tuple[Tensor, Tensor]:
    """Covariates `[12, 3]` and a response that needs the first alone."""
    x = randn(12, 3)
    return x, 1.5 * x[:, 0] + 0.3 * randn(12, seed=1)


@example("NumPyro: horseshoe regression")
def horseshoe() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        wide = pyro.sample("tau", dist.HalfCauchy(1.0))
        local = pyro.sample("lambda", dist.HalfCauchy(torch.ones(3)).to_event(1))
        unscaled = pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        beta = pyro.deterministic("scaled", wide.unsqueeze(-1) * local * unscaled)
        precision = pyro.sample("prec", dist.Gamma(3.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = (beta.unsqueeze(-2) * x).sum(-1)
            pyro.sample("y", dist.Normal(mean, 1 / precision.sqrt().unsqueeze(-1)), obs=y)

    return Example(model, AutoNormal(model), design())


@example("sparse_regression.py: kernel of pairwise interactions")
def sparse_regression() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        eta_1 = pyro.sample("eta_1", dist.HalfCauchy(1.0))
        kappa = pyro.sample("lambda", dist.HalfCauchy(torch.ones(3)).to_event(1))
        var = pyro.sample("var_obs", dist.InverseGamma(3.0, 1.0))
        scaled = kappa.unsqueeze(-2) * x
        linear = scaled @ scaled.mT
        kernel = eta_1[..., None, None] ** 2 * linear + 0.1 * (1 + linear) ** 2
        kernel = kernel + var[..., None, None] * torch.eye(len(y))
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(len(y)), covariance_matrix=kernel), obs=y
        )

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"eta_1": torch.tensor(0.5)}))
    return Example(model, guide, design(), options={"site": "y"})


@example("NumPyro: robust regression with Student's t")
def robust() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
        with pyro.plate("data", len(x), dim=-1):
            mean = (w.unsqueeze(-2) * x).sum(-1)
            pyro.sample("y", dist.StudentT(nu.unsqueeze(-1), mean, 0.5), obs=y)

    return Example(model, AutoGaussian(model), design())


@example("tutorial: logistic regression (covtype)")
def logistic() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("coefs", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(logits=(w.unsqueeze(-2) * x).sum(-1)), obs=y)

    x = randn(12, 3)
    y = (x[:, 0] > 0).to(x)

    def truth() -> float:
        def density(*w: Tensor) -> Tensor:
            at = torch.stack(w, -1)
            logits = at @ x.double().T
            seen = dist.Bernoulli(logits=logits).log_prob(y.double()).sum(-1)
            return dist.Normal(0.0, 1.0).log_prob(at).sum(-1) + seen

        return grid_log_integral(density, *[(-6.0, 6.0, 80)] * 3)

    return Example(model, AutoDiagonalNormal(model), (x, y), truth=truth)


@example("NumPyro: ordinal regression")
def ordinal() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("b_eta", dist.Normal(0.0, 5.0))
        cuts = pyro.sample(
            "c_y",
            dist.TransformedDistribution(
                dist.Normal(torch.zeros(2), 2.0).to_event(1), dist.transforms.OrderedTransform()
            ),
        )
        with pyro.plate("data", len(x)):
            predictor = w.unsqueeze(-1) * x
            pyro.sample("y", dist.OrderedLogistic(predictor, cuts.unsqueeze(-2)), obs=y)

    x = randn(10)
    return Example(model, AutoNormal(model), (x, torch.bucketize(x, torch.tensor([-0.5, 0.5]))))


@example("NumPyro: zero-inflated Poisson")
def zero_inflated() -> Example:
    def model(y: Tensor) -> None:
        gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate), obs=y)

    y = torch.tensor([0.0, 0, 0, 2, 3, 0, 1, 4])

    def truth() -> float:
        def density(gate: Tensor, rate: Tensor) -> Tensor:
            zero = (gate + (1 - gate) * (-rate).exp()).log() * 4
            count = y.double()[y > 0]
            seen = dist.Poisson(rate[:, None]).log_prob(count).sum(-1) + 4 * (1 - gate).log()
            return dist.Gamma(2.0, 1.0).log_prob(rate) + zero + seen

        return grid_log_integral(density, (0.0, 1.0, 400), (0.0, 25.0, 2500))

    return Example(model, AutoNormal(model), (y,), truth=truth)


@example("distribution ZeroInflatedNegativeBinomial: fish caught")
def fishing() -> Example:
    def model(people: Tensor, caught: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        size = pyro.sample("size", dist.Gamma(2.0, 0.5))
        with pyro.plate("data", len(people)):
            logits = (w * people).clamp(-5, 5)
            at = dist.ZeroInflatedNegativeBinomial(size, logits=logits, gate=torch.tensor(0.3))
            pyro.sample("caught", at, obs=caught)

    people = torch.tensor([1.0, 2, 3, 1, 4, 2])
    return Example(model, AutoNormal(model), (people, torch.tensor([0.0, 1, 5, 0, 9, 0])))


@example("NumPyro: censored waiting times")
def censored() -> Example:
    def model(times: Tensor, censored: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(times)):
            with poutine.mask(mask=~censored):
                pyro.sample("time", dist.Exponential(rate), obs=times)
            with poutine.mask(mask=censored):
                late = torch.exp(-rate * times).clamp(max=1 - 1e-6)
                pyro.sample("late", dist.Bernoulli(late), obs=torch.ones_like(times))

    times = torch.tensor([0.3, 1.2, 0.8, 2.0, 2.0])
    censored = torch.tensor([False, False, False, True, True])

    def truth() -> float:
        total = 6.3 + 1.0  # Gamma(2, 1) times rate^3 exp(-6.3 rate)
        return math.lgamma(5.0) - 5 * math.log(total)

    return Example(model, AutoNormal(model), (times, censored), truth=truth)


@example("NumPyro: Bayesian imputation of missing ages")
def imputation() -> Example:
    def model(age: Tensor, missing: Tensor, survived: Tensor) -> None:
        mu = pyro.sample("age_mu", dist.Normal(0.0, 1.0))
        slope = pyro.sample("b_age", dist.Normal(0.0, 1.0))
        with pyro.plate("missing", int(missing.sum())):
            guess = pyro.sample("age_impute", dist.Normal(mu, 1.0))
        filled = age.expand(guess.shape[:-1] + age.shape).clone()
        filled[..., missing] = guess
        with pyro.plate("data", len(age)):
            pyro.sample("age", dist.Normal(mu, 1.0).mask(~missing), obs=age)
            pyro.sample("survived", dist.Bernoulli(logits=slope * filled), obs=survived)

    missing = torch.tensor([False, True, False, False, True, False])
    survived = torch.tensor([1.0, 0, 1, 0, 1, 1])
    return Example(
        model, AutoNormal(model), (randn(6).masked_fill(missing, 0.0), missing, survived)
    )


@example("NumPyro: negative binomial with an exposure")
def negative_binomial() -> Example:
    def model(exposure: Tensor, y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.GammaPoisson(3.0, 3.0 / (rate * exposure)), obs=y)

    exposure, y = torch.tensor([1.0, 2.0, 3.0, 1.5]), torch.tensor([0.0, 3.0, 4.0, 1.0])

    def truth() -> float:
        def density(rate: Tensor) -> Tensor:
            at = dist.GammaPoisson(3.0, 3.0 / (rate[:, None] * exposure.double()))
            return dist.Gamma(2.0, 2.0).log_prob(rate) + at.log_prob(y.double()).sum(-1)

        return grid_log_integral(density, (0.0, 20.0, 20_000))

    return Example(model, AutoNormal(model), (exposure, y), truth=truth)


@example("NumPyro: Gaussian shells")
def shells() -> Example:
    def log_shells(z: Tensor) -> Tensor:
        centres = torch.tensor([[-3.5, 0.0], [3.5, 0.0]]).to(z)
        radius = (z.unsqueeze(-2) - centres).norm(dim=-1)
        return torch.logsumexp(dist.Normal(2.0, 0.3).log_prob(radius), -1)

    def model() -> None:
        z = pyro.sample("z", dist.Uniform(-6.0, 6.0).expand([2]).to_event(1))
        pyro.factor("shells", log_shells(z))

    def truth() -> float:
        density = lambda a, b: log_shells(torch.stack([a, b], -1)) - math.log(144)  # noqa: E731
        return grid_log_integral(density, (-6.0, 6.0, 1200), (-6.0, 6.0, 1200))

    return Example(model, AutoNormal(model), (), truth=truth)


@example("tutorial: simulated heights, Renyi bound")
def heights() -> Example:
    def model(weight: Tensor, height: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 5.0))
        with pyro.plate("data", len(weight)):
            pyro.sample("height", dist.Normal(a + b * weight, sigma), obs=height)

    weight = randn(10)
    return Example(model, AutoNormal(model), (weight, 0.8 * weight + 0.4 * randn(10, seed=1)))


@example("mue/FactorMuE-like: a mixture of products over sequences")
def sequence_mixture() -> Example:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
        tables = pyro.param(
            "tables",
            lambda: torch.softmax(randn(2, 4, 3, seed=2), -1),
            constraint=dist.constraints.simplex,
        )
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.OneHotCategorical(tables[k]).to_event(1), obs=x)

    x = torch.eye(3)[(uniform(6, 4) * 3).long()]

    def truth() -> float:
        tables = torch.softmax(randn(2, 4, 3, seed=2).double(), -1).log()
        each = torch.einsum("nld,kld->nk", x.double(), tables)
        return (torch.logsumexp(each, -1) - math.log(2)).sum().item()

    return Example(model, nothing, (x,), enumerating(), truth)


@example("NumPyro: Thompson sampling, a quadratic surrogate")
def surrogate() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        b0 = pyro.sample("b0", dist.Normal(0.0, 1.0))
        b1 = pyro.sample("b1", dist.Normal(0.0, 1.0))
        b2 = pyro.sample("b2", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b0 + b1 * x + b2 * x**2, 0.3), obs=y)

    x = torch.linspace(-1.0, 1.0, 7)
    y = 0.5 - x**2 + 0.3 * randn(7)

    def truth() -> float:
        basis = torch.stack([torch.ones(7), x, x**2], -1).double()
        covariance = basis @ basis.T + 0.09 * torch.eye(7).double()
        return (
            dist.MultivariateNormal(torch.zeros(7).double(), covariance).log_prob(y.double()).item()
        )

    return Example(model, AutoNormal(model), (x, y), truth=truth)


@example("NumPyro: truncated distributions")
def truncated() -> Example:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
            pyro.factor("cut", -dist.Normal(0.0, 1.0).cdf(loc).log().expand(y.shape))

    y = randn(6).abs()

    def truth() -> float:
        def density(loc: Tensor) -> Tensor:
            seen = dist.Normal(loc[:, None], 1.0).log_prob(y.double()).sum(-1)
            return dist.Normal(0.0, 1.0).log_prob(loc) + seen - 6 * torch.special.log_ndtr(loc)

        return grid_log_integral(density, (-8.0, 8.0, 20_000))

    return Example(model, AutoNormal(model), (y,), truth=truth)


@example("NumPyro: Bernoulli mixture of coins")
def coins() -> Example:
    def model(heads: Tensor) -> None:
        bias = pyro.sample("bias", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(heads)):
            z = pyro.sample("z", dist.Bernoulli(share), infer={"enumerate": "parallel"}).long()
            chosen = torch.where(z == 1, bias[..., 1:2], bias[..., 0:1])
            pyro.sample("x", dist.Binomial(5, chosen), obs=heads)

    heads = torch.tensor([1.0, 4.0, 5.0, 0.0, 4.0])
    return Example(model, over(model, "bias", "share"), (heads,), enumerating())
