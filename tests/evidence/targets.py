"""Densities with a known normaliser as programs with one latent vector for each datum.

Each datum is a replicate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import Evidence

FLOAT = torch.float64


@dataclass(frozen=True)
class LocalTarget:
    """prior(z) exp(log_likelihood(z, x)) for every datum, with its log normaliser."""

    name: str
    prior: dist.Distribution
    log_likelihood: Callable[[Tensor], Tensor]
    log_z: float

    def program(self) -> Program:
        """The program; its data only count replicates."""

        def model(x: Tensor | None = None) -> None:
            with pyro.plate("data", 1 if x is None else len(x)):
                z = pyro.sample("z", self.prior)
                pyro.factor("likelihood", self.log_likelihood(z))

        return Program(model)

    def data(self, count: int) -> tuple[Tensor]:
        """As many replicates."""
        return (torch.zeros(count, dtype=FLOAT),)

    @staticmethod
    def registry() -> list["LocalTarget"]:
        """A Gaussian, a skewed, a heavy-tailed and a bimodal target."""
        return [GAUSSIAN, SKEWED, CAUCHY, BIMODAL]


def standard(dims: int) -> dist.Distribution:
    """Standard normal prior."""
    return dist.Normal(torch.zeros(dims, dtype=FLOAT), 1.0).to_event(1)


def log_normal(z: Tensor, loc: float, scale: float) -> Tensor:
    """Normal log density summed over the last dimension."""
    return dist.Normal(loc, scale).log_prob(z).sum(-1)


def convolved(loc: float, scale: float, dims: int) -> float:
    """log of the integral of N(z | 0, 1) N(z | loc, scale) over dims dimensions."""
    return (
        dims
        * dist.Normal(0.0, math.sqrt(1 + scale**2)).log_prob(torch.tensor(loc, dtype=FLOAT)).item()
    )


GAUSSIAN = LocalTarget(
    "gaussian", standard(3), lambda z: log_normal(z, 1.0, 0.4), convolved(1.0, 0.4, 3)
)

# Gamma(1.5, 1) prior, 10 counts of Poisson(g): Z = Gamma(11.5) / (Gamma(1.5) 2^11.5 10!)
SKEWED = LocalTarget(
    "skewed",
    dist.Gamma(torch.full((1,), 1.5, dtype=FLOAT), 1.0).to_event(1),
    lambda z: dist.Poisson(z).log_prob(torch.tensor(10.0)).sum(-1),
    math.lgamma(11.5) - math.lgamma(1.5) - 11.5 * math.log(2) - math.lgamma(11),
)

# Cauchy prior, Cauchy likelihood: the posterior has polynomial tails; Z is the Cauchy density of
# the summed scales
CAUCHY = LocalTarget(
    "heavy-tailed",
    dist.Cauchy(torch.zeros(2, dtype=FLOAT), 1.0).to_event(1),
    lambda z: dist.Cauchy(2.0, 0.5).log_prob(z).sum(-1),
    2 * dist.Cauchy(0.0, 1.5).log_prob(torch.tensor(2.0, dtype=FLOAT)).item(),
)

BIMODAL = LocalTarget(
    "bimodal",
    standard(2),
    lambda z: torch.logaddexp(log_normal(z, 1.5, 0.3), log_normal(z, -1.5, 0.3)) - math.log(2),
    convolved(1.5, 0.3, 2),
)

# two normals as GAUSSIAN's, of which z_0 > 1 alone is possible: under the posterior N(0.862, 0.371)
# that is 35.5 %
CUT = LocalTarget(
    "cut",
    standard(2),
    lambda z: log_normal(z, 1.0, 0.4) + torch.where(z[..., 0] > 1, 0.0, -torch.inf),
    convolved(1.0, 0.4, 2)
    + math.log(0.5 * math.erfc((1 - 1 / 1.16) / (0.4 / math.sqrt(1.16)) / math.sqrt(2))),
)


def coverage(result: Evidence, truth: float) -> float:
    """Share of the replicates whose 95 % interval covers the truth."""
    low, high = result.interval(0.95)
    return float(((low <= truth) & (truth <= high)).double().mean())


def linear_gaussian(
    num_data: int, noise: float = 0.5, dims: int = 3
) -> tuple[Callable, Callable, Tensor, Tensor]:
    """A linear-Gaussian VAE.

    Model, a guide that is not quite its posterior, data, and their exact log densities.
    """
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(dims, 2, generator=generator, dtype=FLOAT)
    x = torch.randn(num_data, dims, generator=generator, dtype=FLOAT)
    precision = torch.eye(2, dtype=FLOAT) + weight.T @ weight / noise**2
    posterior = torch.linalg.solve(precision, weight.T / noise**2)
    scales = 1.3 * torch.linalg.inv(precision).diagonal().sqrt()

    def model(x: Tensor | None = None) -> None:
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", standard(2))
            pyro.sample(
                "x", dist.Normal((z.unsqueeze(-2) * weight).sum(-1), noise).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ posterior.T, scales).to_event(1))

    covariance = weight @ weight.T + noise**2 * torch.eye(dims, dtype=FLOAT)
    return (
        model,
        guide,
        x,
        dist.MultivariateNormal(torch.zeros(dims, dtype=FLOAT), covariance).log_prob(x),
    )
