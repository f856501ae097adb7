"""Exact evidence in closed form.

Programs have no latents, finite latents that are summed out, or linear-Gaussian ones that are
integrated out.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_dgm.checked import checked
from ppl_dgm.evidence.alarms import rounding_between
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.degree import degree_in
from ppl_dgm.evidence.estimate import BoundKind, Estimate
from ppl_dgm.evidence.normalising import ladder_to, sum_out
from ppl_dgm.program import Bound
from ppl_dgm.program.ladder import MAX_SUMMED
from ppl_dgm.program.precision import Shaking
from ppl_dgm.program.supports import is_real
from ppl_dgm.sampling.memory import MEMORY, chunk_plan, join_parts
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.validation import check_least, is_singular

__all__ = ["Exact", "draw_gaussian", "is_gaussian"]

NOT_GAUSSIAN = (
    "the program's Gaussian latents do not enter its means linearly, or enter its variances, so "
    "that they cannot be integrated out in closed form; use ImportanceSampling, AIS or "
    "BridgeSampling"
)
SHOWN = 5e-4  # nats that show in the digits printed
NUM_CHECKS = 4  # random points at which a log density must be its own quadratic expansion


class Quadratic(NamedTuple):
    """Gaussian log density by mode, height and precision.

    The mode is `[1, *batch, dim]`, the height `[1, *batch]` and the precision `[*batch, dim, dim]`.
    """

    mode: Tensor
    height: Tensor
    precision: Tensor

    def __call__(self, point: Tensor) -> Tensor:
        offset = point - self.mode
        return self.height - 0.5 * torch.einsum(
            "...i,...ij,...j->...", offset, self.precision, offset
        )

    @property
    def log_integral(self) -> Tensor:
        """log of the integral over all points: `[*batch]`."""
        log_det = torch.linalg.cholesky(self.precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.height[0] + 0.5 * self.precision.shape[-1] * math.log(2 * math.pi) - log_det

    def draw(self, num_draws: int) -> Tensor:
        """Draw points from the density: `[num_draws, *batch, dim]`."""
        mode = self.mode.expand(num_draws, *self.mode.shape[1:])
        return MultivariateNormal(mode, precision_matrix=self.precision).sample()


@checked
@dataclass(frozen=True)
class Exact(Estimator):
    r"""The evidence without error, where it has a closed form.

    Applies where the program has no latents (autoregressive nets, flows, Bayes nets on complete
    data), where all are finite and discrete (summed out, marked or not), and where latents and data
    are jointly Gaussian (probabilistic PCA, linear regression, Kalman filters): then with mode
    $z^*$ and precision $\Lambda$ of $\log p(x, z)$

    $$\log p(x) = \log p(x, z^*) + \tfrac D2 \log 2\pi - \tfrac12 \log|\Lambda|,$$

    where the operations that compute $\log p(x, z)$ make it a polynomial of degree two in z
    (`degree_in`).

    All is computed in float64, and a second time with every result moved by a unit in its last
    place: what that changes is `diagnostics["rounding"]`, the standard error where it shows in the
    digits printed, and an alarm above 0.001 nat.

    Args:
        memory: bytes that one piece of the data may allocate.

    Raises:
        ValueError: where none of these holds.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = Exact()(ppl_dgm.Program(model), torch.ones(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.ones(1)).double()
        >>> torch.allclose(result.log_z, truth, atol=1e-6)
        True
    """

    memory: int = MEMORY
    bound: ClassVar[BoundKind] = "exact"
    sum_out: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_least(self, memory=1)

    def check(self, bound: Bound) -> None:
        if bound.structure.latents and not is_gaussian(bound):
            names = [latent.name for latent in bound.structure.model_latents]
            raise ValueError(
                f"the latents {names} cannot be integrated out in closed form: they are neither "
                "all finite and discrete nor jointly Gaussian with the data; use "
                "ImportanceSampling, AIS or BridgeSampling"
            )

    def estimate(self, bound: Bound) -> Estimate:
        evaluate = integrate_gaussian if bound.structure.latents else sum_out
        parts = [part for _, part, _ in chunk_plan(bound, 1, self.memory, evaluate)]
        log_z = join_parts([evaluate(part) for part in parts])
        with Shaking():
            shaken = join_parts([evaluate(part) for part in parts])
        rounding = rounding_between(log_z, shaken)
        errors = torch.where(rounding > SHOWN, rounding, 0.0)
        return Estimate(log_z, errors, {"rounding": rounding.square().sum().sqrt().item()})

    def partition(self, free: Bound) -> Estimate:
        ladder = ladder_to(free)
        log_z = None if ladder is None else ladder.log_partition()
        if log_z is not None:
            return Estimate(log_z, torch.zeros_like(log_z))
        if not is_gaussian(free):
            raise ValueError(
                "the partition function has no closed form here: the density is not Gaussian, nor "
                f"are the data binary with at most {MAX_SUMMED} units in the smaller layer; use "
                "AIS or SMC"
            )
        return self.estimate(free)


def is_gaussian(bound: Bound) -> bool:
    """Check whether the joint density is Gaussian in the latents.

    Then log p(x, z) is of degree two in latents that range over all real numbers.
    """
    if not all(is_real(latent.support) for latent in bound.structure.model_latents):
        return False
    values = {name: value.clone() for name, value in bound.draw_prior(1).values.items()}
    return degree_in(list(values.values()), lambda: bound.log_joint(values).total) <= 2


def integrate_gaussian(bound: Bound) -> Tensor:
    """log p(x) of a linear-Gaussian program: `[data]` or `[]`."""
    check_quadratic(bound)
    target = Unconstrained(bound)
    return expand_quadratically(target, target.sample_prior(1)).log_integral


def draw_gaussian(bound: Bound, num_draws: int) -> Tensor:
    """Draw unconstrained latents of a linear-Gaussian program.

    They are exact draws of the normalised joint density, `[num_draws, *batch, dim]`.
    """
    check_quadratic(bound)
    target = Unconstrained(bound)
    return expand_quadratically(target, target.sample_prior(1)).draw(num_draws)


def check_quadratic(bound: Bound) -> None:
    """Refuse a log density that is not quadratic.

    It is compared with its own quadratic expansion, from which it differs where numpy computes a
    part of it.
    """
    target = Unconstrained(bound)
    start = target.sample_prior(1 + NUM_CHECKS)
    values, expected = (
        target.log_joint(start[1:]),
        expand_quadratically(target, start[:1])(start[1:]),
    )
    tolerance = 1e3 * torch.finfo(target.dtype).eps
    if not torch.allclose(
        values, expected, rtol=tolerance, atol=tolerance * float(1 + values.abs().max())
    ):
        raise ValueError(NOT_GAUSSIAN)


@torch.enable_grad()
def expand_quadratically(target: Unconstrained, point: Tensor) -> Quadratic:
    """Expand the log joint density quadratically around a point.

    The point is `[1, *batch, dim]`; the square is completed.
    """
    point = point.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_joint(point).sum(), point, create_graph=True)
    rows = [
        torch.autograd.grad(gradient[..., i].sum(), point, retain_graph=True)[0]
        for i in range(target.dim)
    ]
    precision = -torch.stack(rows, -2)[0].detach()
    if bool(is_singular(precision).any()):
        raise ValueError(
            "the joint density does not fall off in every direction of the latents, so that its "
            "integral has no closed form: a covariance is singular; use ImportanceSampling or AIS"
        )
    mode = point.detach() + torch.linalg.solve(precision, gradient.detach()[0])
    return Quadratic(mode, target.log_joint(mode).detach(), precision)
