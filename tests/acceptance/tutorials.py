"""Programs of the introductory tutorials: coins, scales, regressions, effect handlers."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from acceptance.registry import (
    Example,
    enumerating,
    example,
    grid_log_integral,
    point,
    randn,
    uniform,
)

positive, unit = dist.constraints.positive, dist.constraints.unit_interval


def tosses() -> Tensor:
    """Six heads and four tails."""
    return torch.tensor([1.0] * 6 + [0.0] * 4)


def beta_evidence(heads: float, tails: float, a: float = 10.0, b: float = 10.0) -> float:
    """Log evidence of tosses of a coin with a Beta(a, b) fairness."""
    log_beta = lambda p, q: math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)  # noqa: E731
    return log_beta(a + heads, b + tails) - log_beta(a, b)


@example("tutorial svi_part_i: fairness of a coin")
def coin() -> Example:
    def model(data: Tensor) -> None:
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        for i in range(len(data)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(fairness), obs=data[i])

    def guide(data: Tensor) -> None:
        alpha = pyro.param("alpha_q", torch.tensor(15.0), constraint=positive)
        beta = pyro.param("beta_q", torch.tensor(15.0), constraint=positive)
        pyro.sample("latent_fairness", dist.Beta(alpha, beta))

    return Example(model, guide, (tosses(),), truth=lambda: beta_evidence(6, 4))


@example("tutorial svi_part_ii: sequential and vectorised plates")
def coin_in_plates() -> Example:
    def model(data: Tensor) -> None:
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("observe_data"):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=data)

    def guide(data: Tensor) -> None:
        alpha = pyro.param("alpha_q", lambda: torch.tensor(15.0), constraint=positive)
        beta = pyro.param("beta_q", lambda: torch.tensor(15.0), constraint=positive)
        pyro.sample("latent_fairness", dist.Beta(alpha, beta))

    return Example(
        model,
        guide,
        (tosses(),),
        truth=lambda: beta_evidence(6, 4),
        options={"plate": "observe_data"},
    )


@example("tutorial svi_part_iii: gradients through a decaying baseline")
def baseline() -> Example:
    def model(data: Tensor) -> None:
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data_plate"):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=data)

    def guide(data: Tensor) -> None:
        alpha = pyro.param("alpha_q", torch.tensor(15.0), constraint=positive)
        beta = pyro.param("beta_q", torch.tensor(15.0), constraint=positive)
        decaying = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        pyro.sample(
            "latent_fairness",
            dist.testing.fakes.NonreparameterizedBeta(alpha, beta),
            infer={"baseline": decaying},
        )

    return Example(
        model,
        guide,
        (tosses(),),
        TraceGraph_ELBO,
        lambda: beta_evidence(6, 4),
        {"plate": "data_plate"},
        given=True,
    )


@example("tutorial mle_map: a masked prior")
def masked_prior() -> Example:
    def model(data: Tensor) -> None:
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0).mask(False))
        with pyro.plate("data", data.size(0)):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=data)

    return Example(model, AutoDelta(model), (tosses(),))


@example("tutorial mle_map: maximum a posteriori by hand")
def point_mass() -> Example:
    def model(data: Tensor) -> None:
        fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data", data.size(0)):
            pyro.sample("obs", dist.Bernoulli(fairness), obs=data)

    def guide(data: Tensor) -> None:
        fixed = pyro.param("f_map", torch.tensor(0.5), constraint=unit)
        pyro.sample("latent_fairness", dist.Delta(fixed))

    return Example(model, guide, (tosses(),))


@example("tutorial intro_long: linear regression of rugged nations")
def rugged() -> Example:
    def model(is_africa: Tensor, ruggedness: Tensor, log_gdp: Tensor) -> Tensor:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
        b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
        b_ar = pyro.sample("bAR", dist.Normal(0.0, 1.0))
        sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=positive)
        mean = a + b_a * is_africa + b_r * ruggedness + b_ar * is_africa * ruggedness
        with pyro.plate("data", len(ruggedness)):
            return pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)

    height = 3 * uniform(20, seed=1)
    africa = (uniform(20) < 0.4).to(height)
    gdp = 9.0 - 1.8 * africa - 0.2 * height + 0.5 * randn(20)

    def truth() -> float:
        design = torch.stack([torch.ones(20), africa, height, africa * height], -1).double()
        prior = torch.tensor([100.0, 1.0, 1.0, 1.0]).double()
        covariance = design * prior @ design.T + torch.eye(20).double()
        at = dist.MultivariateNormal(torch.zeros(20).double(), covariance)
        return at.log_prob(gdp.double()).item()

    return Example(model, AutoNormal(model), (africa, height, gdp), truth=truth)


def regression_data() -> tuple[Tensor, Tensor]:
    """Covariates `[12, 3]` and responses."""
    x = randn(12, 3)
    return x, x @ torch.tensor([0.3, -0.8, 1.2]) + 1.0 + 0.3 * randn(12, seed=1)


class BayesianRegression(PyroModule):
    """A linear layer with priors on weights and bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](inputs, outputs)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([outputs]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


@example("tutorial bayesian_regression: PyroSample weights")
def bayesian_regression() -> Example:
    model = BayesianRegression(3, 1)
    return Example(model, AutoDiagonalNormal(model), regression_data())


@example("tutorial bayesian_regression_ii: multivariate guide")
def bayesian_regression_ii() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        w = pyro.sample("w", dist.Normal(0.0, torch.ones(3)).to_event(1))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(a + x @ w, sigma), obs=y)

    return Example(model, AutoMultivariateNormal(model, init_scale=0.1), regression_data())


@example("tutorial jit: two means in a plate, AutoDiagonalNormal")
def jit_tutorial() -> Example:
    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
        with pyro.plate("data", data.size(0)):
            pyro.sample("obs", dist.Normal(loc, scale), obs=data)

    data = 1.0 + 0.5 * randn(8)

    def truth() -> float:
        def density(loc: Tensor, log_scale: Tensor) -> Tensor:
            prior = dist.Normal(0.0, 10.0).log_prob(loc) + dist.Normal(0.0, 3.0).log_prob(log_scale)
            x = data.double()[:, None]
            return prior + dist.Normal(loc, log_scale.exp()).log_prob(x).sum(0)

        return grid_log_integral(density, (-15.0, 15.0, 4000), (-4.0, 5.0, 500))

    return Example(model, AutoDiagonalNormal(model), (data,), truth=truth)


@example("tutorial gmm: point masses and an enumerated assignment")
def gmm() -> Example:
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            on = {"enumerate": "parallel"}
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer=on)
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
    return Example(model, point(model, "weights", "locs", "scale"), (data,), enumerating())


@example("tutorial gmm: a guide of assignments over learned values")
def gmm_assignments() -> Example:
    def model(data: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([0.5, 10.0]))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("obs", dist.Normal(locs[assignment], 1.0), obs=data)

    def guide(data: Tensor) -> None:
        with poutine.block(hide_types=["param"]):
            shift = pyro.param("shift", torch.tensor(5.0))
        with pyro.plate("data", len(data)):
            probs = pyro.param("probs", torch.ones(len(data), 2) / 2, dist.constraints.simplex)
            logits = probs.log() + torch.stack([shift - data, data - shift], -1).clamp(-1, 1)
            on = {"enumerate": "parallel"}
            pyro.sample("assignment", dist.Categorical(logits=logits), infer=on)

    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    def truth() -> float:
        each = dist.Normal(torch.tensor([0.5, 10.0]).double(), 1.0).log_prob(data.double()[:, None])
        return (torch.logsumexp(each, -1) - math.log(2)).sum().item()

    return Example(model, guide, (data,), enumerating(), truth, given=True)


@example("tutorial dirichlet_process_mixture: stick breaking")
def dirichlet_process() -> Example:
    truncation = 4

    def sticks(beta: Tensor) -> Tensor:
        rest = (1 - beta).cumprod(-1)
        return nn.functional.pad(beta, (0, 1), value=1.0) * nn.functional.pad(
            rest, (1, 0), value=1.0
        )

    def model(data: Tensor) -> None:
        with pyro.plate("beta_plate", truncation - 1):
            beta = pyro.sample("beta", dist.Beta(1.0, 0.7))
        with pyro.plate("mu_plate", truncation):
            mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(sticks(beta)))
            pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)

    def guide(data: Tensor) -> None:
        kappa = pyro.param("kappa", lambda: torch.full([truncation - 1], 1.3), constraint=positive)
        tau = pyro.param("tau", lambda: 3 * randn(truncation, 2, seed=5))
        phi = pyro.param(
            "phi", lambda: torch.ones(len(data), truncation) / truncation, dist.constraints.simplex
        )
        with pyro.plate("beta_plate", truncation - 1):
            pyro.sample("beta", dist.Beta(torch.ones(truncation - 1), kappa))
        with pyro.plate("mu_plate", truncation):
            pyro.sample("mu", dist.MultivariateNormal(tau, torch.eye(2)))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(phi))

    data = torch.cat([randn(5, 2) + 3, randn(5, 2, seed=1) - 3])
    return Example(model, guide, (data,), given=True)
