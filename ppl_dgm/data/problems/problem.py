"""Problems of evidence with known answers, and their parts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.program import Program

__all__ = [
    "ENUMERATION",
    "FLOAT",
    "QUADRATURE",
    "STANDARD",
    "Model",
    "Problem",
    "box",
    "integral",
    "normal",
    "product",
    "scalar_problem",
    "tensor",
    "uniform",
]

FLOAT = torch.float64
QUADRATURE, ENUMERATION = "quadrature", "sum over all values"
Model = Callable[..., None]
STANDARD = dist.Normal(torch.zeros((), dtype=FLOAT), 1.0)


@dataclass(frozen=True)
class Problem:
    """A program, its data, and its log evidence.

    Attributes:
        name: of the problem.
        model: its model, in float64.
        args: its data, as the model takes them.
        log_z: log evidence of all data together, in nats.
        reference_error: standard error of `log_z`; zero where it is known to all digits.
        guide: one that proposes latents, or None for the prior.
        known: how `log_z` is known.
        source: where model and data are from; empty for those made here.
    """

    name: str
    model: Callable
    args: tuple
    log_z: float
    reference_error: float = 0.0
    guide: Callable | None = None
    known: str = "closed form"
    source: str = ""

    def program(self, guide: Callable | None = None) -> Program:
        """Make a fresh program of the problem.

        It proposes from a given guide, from its own, or from the prior.
        """
        return Program(self.model, guide or self.guide)


def tensor(values: object) -> Tensor:
    """Numbers in double precision."""
    return torch.tensor(values, dtype=FLOAT)


def uniform(low: float, high: float, dims: int) -> Any:
    """Uniform prior over a box, in double precision."""
    return dist.Uniform(
        torch.full((dims,), low, dtype=FLOAT), torch.full((dims,), high, dtype=FLOAT)
    ).to_event(1)


def normal(loc: float, scale: float, dims: int) -> Any:
    """Normal prior over a vector, in double precision."""
    return dist.Normal(
        torch.full((dims,), loc, dtype=FLOAT), torch.full((dims,), scale, dtype=FLOAT)
    ).to_event(1)


def integral(
    log_f: Callable[[Tensor], Tensor], low: float, high: float, count: int = 20_001
) -> float:
    """log of the integral of exp(log_f) over an interval."""
    grid = torch.linspace(low, high, count, dtype=FLOAT)
    return float(log_f(grid).logsumexp(0)) + math.log((high - low) / (count - 1))


def scalar(likelihood: Callable[[Tensor], Any], prior: Any = STANDARD) -> Model:
    """One latent z and data from a likelihood given it."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(z), obs=x)

    return model


def scalar_problem(
    name: str,
    likelihood: Callable[[Tensor], Any],
    x: Tensor,
    prior: Any = STANDARD,
    span: tuple[float, float] = (-12.0, 12.0),
    count: int = 20_001,
) -> Problem:
    """Make a problem of one latent, answered by quadrature."""

    def log_f(z: Tensor) -> Tensor:
        return prior.log_prob(z) + likelihood(z[:, None]).log_prob(x).sum(-1)

    return Problem(
        name, scalar(likelihood, prior), (x,), integral(log_f, *span, count), known=QUADRATURE
    )


def product(dims: int, likelihood: Callable[[Tensor], Any], x: float, name: str) -> Problem:
    """The same integral in each of many dimensions."""

    def model(data: Tensor) -> None:
        z = pyro.sample("z", normal(0.0, 1.0, dims))
        pyro.sample("x", likelihood(z).to_event(1), obs=data)

    one = integral(lambda z: STANDARD.log_prob(z) + likelihood(z).log_prob(tensor(x)), -12, 12)
    return Problem(
        name, model, (torch.full((dims,), x, dtype=FLOAT),), dims * one, known=QUADRATURE
    )


def box(
    name: str,
    dims: int,
    half: float,
    log_f: Callable[[Tensor], Tensor],
    log_z: float,
    known: str = "closed form",
) -> Problem:
    """A factor over a uniform box around zero.

    `log_z` is the integral of its exponential over all space.
    """

    def model() -> None:
        z = pyro.sample("z", uniform(-half, half, dims))
        pyro.factor("likelihood", log_f(z))

    return Problem(name, model, (), log_z - dims * math.log(2 * half), known=known)
