"""Evidence in closed form: no latents, finite latents summed out, or linear-Gaussian ones integrated out."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.evidence.base import BoundKind, Estimate, Estimator
from ppl_dgm.evidence.normalising import FlipLadder, is_binary, sum_out
from ppl_dgm.program import Bound, ladder_of
from ppl_dgm.program.ladder import MAX_SUMMED, sum_states
from ppl_dgm.program.sites import is_factor, random_sites
from ppl_dgm.sampling.memory import MEMORY, chunk_plan
from ppl_dgm.sampling.unconstrained import Unconstrained

GAUSSIANS = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal)
NUM_LINES = 64  # along which a log density with factors must be quadratic
NUM_CHECKS = 4  # random points at which a log density must be its own quadratic expansion


class Quadratic(NamedTuple):
    """Mode `[1, *batch, dim]`, height `[1, *batch]` and precision `[*batch, dim, dim]` of a Gaussian log density."""

    mode: Tensor
    height: Tensor
    precision: Tensor

    def __call__(self, point: Tensor) -> Tensor:
        offset = (point - self.mode).to(self.precision)
        return self.height - 0.5 * torch.einsum(
            "...i,...ij,...j->...", offset, self.precision, offset
        )

    @property
    def log_integral(self) -> Tensor:
        """log of the integral over all points: `[*batch]`."""
        log_det = torch.linalg.cholesky(self.precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.height[0] + 0.5 * self.precision.shape[-1] * math.log(2 * math.pi) - log_det


@dataclass(frozen=True)
class Exact(Estimator):
    r"""The evidence without error, where it has a closed form.

    Applies where the program has no latents (autoregressive nets, flows, Bayes nets on complete data), where all are
    finite and discrete (summed out, marked or not), and where latents and data are jointly Gaussian (probabilistic
    PCA, linear regression, Kalman filters): then with mode $z^*$ and precision $\Lambda$ of $\log p(x, z)$

    $$\log p(x) = \log p(x, z^*) + \tfrac D2 \log 2\pi - \tfrac12 \log|\Lambda|,$$

    after checking at random points that $\log p(x, z)$ is quadratic in z.

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
        >>> torch.allclose(result.log_z, dist.Normal(0.0, 2.0**0.5).log_prob(torch.ones(1)).double(), atol=1e-6)
        True
    """

    memory: int = MEMORY
    bound: ClassVar[BoundKind] = "exact"
    sum_out: ClassVar[bool] = True

    def check(self, bound: Bound) -> None:
        if bound.structure.latents and not is_gaussian(bound):
            names = [latent.name for latent in bound.structure.model_latents]
            raise ValueError(
                f"the latents {names} cannot be integrated out in closed form: they are neither all finite and discrete "
                "nor jointly Gaussian with the data; use ImportanceSampling, AIS or BridgeSampling"
            )

    def estimate(self, bound: Bound) -> Estimate:
        evaluate = integrate_gaussian if bound.structure.latents else sum_out
        parts = [evaluate(part) for _, part, _ in chunk_plan(bound, 1, self.memory, evaluate)]
        log_z = parts[0] if parts[0].dim() == 0 else torch.cat(parts)
        return Estimate(log_z, torch.zeros_like(log_z))

    def partition(self, free: Bound) -> Estimate:
        log_z = exact_partition(free)
        if log_z is not None:
            return Estimate(log_z, torch.zeros_like(log_z))
        if not is_quadratic(free):
            raise ValueError(
                "the partition function has no closed form here: the density is not Gaussian, nor are the data binary with at "
                f"most {MAX_SUMMED} units in the smaller layer; use AIS or SMC"
            )
        return self.estimate(free)


def exact_partition(free: Bound) -> Tensor | None:
    """Compute the log partition function of a program without data by a sum, `[]`; None where that would take too long."""
    own = ladder_of(free.model)
    if own is not None:
        return own.log_partition()
    latents = free.structure.model_latents
    binary = [is_binary(latent.support) for latent in latents] == [True]
    if not binary or (free.num_data or 1) > 1:
        return None
    ladder = FlipLadder(free)
    example = ladder.draw(1)
    shape = tuple(example.shape[1:])
    if example.numel() > MAX_SUMMED:
        return None
    shaped = lambda x: ladder.log_density(x.reshape(-1, *shape), 1.0)  # noqa: E731
    return sum_states(example.numel(), example, shaped)


def is_quadratic(free: Bound) -> bool:
    """Return whether a log density over real numbers has no third differences along random lines."""
    sites = [site for _, site in random_sites(free.model_trace()) if not is_factor(site)]
    if not all(isinstance(untransformed(site["fn"]), GAUSSIANS) for site in sites):
        return False
    target = Unconstrained(free)
    start, way = target.sample_prior(NUM_LINES), target.sample_prior(NUM_LINES)
    values = [target.log_joint(start + i * way).double() for i in (-1, 0, 1, 2)]
    third = values[3] - 3 * values[2] + 3 * values[1] - values[0]
    size = torch.stack(values).abs().amax(0).clamp_min(1.0)
    return bool((third.abs() <= 1e3 * torch.finfo(target.dtype).eps * size).all())


def is_gaussian(bound: Bound) -> bool:
    """Whether every latent and every datum is drawn from a Gaussian over all real numbers."""
    supports = [latent.support for latent in bound.structure.model_latents]
    sites = [untransformed(site["fn"]) for _, site in random_sites(bound.model_trace())]
    return all(is_real(support) for support in supports) and all(
        isinstance(fn, GAUSSIANS) for fn in sites
    )


def untransformed(fn: Any) -> Any:
    """What a distribution is made of: of log-normal data the logarithms are Gaussian."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def is_real(support: constraints.Constraint) -> bool:
    """Whether a support is all of R^n."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or isinstance(support, type(constraints.real))


def integrate_gaussian(bound: Bound) -> Tensor:
    """log p(x) of a linear-Gaussian program: `[data]` or `[]`."""
    target = Unconstrained(bound)
    start = target.sample_prior(1 + NUM_CHECKS)
    quadratic = expand_quadratically(target, start[:1])
    values = target.log_joint(start[1:]).double()
    expected = quadratic(start[1:])
    tolerance = 1e3 * torch.finfo(target.dtype).eps
    if not torch.allclose(
        values, expected, rtol=tolerance, atol=tolerance * float(1 + values.abs().max())
    ):
        raise ValueError(
            "the program's Gaussian latents do not enter its means linearly, or enter its variances, so that they cannot "
            "be integrated out in closed form; use ImportanceSampling, AIS or BridgeSampling"
        )
    return quadratic.log_integral


@torch.enable_grad()
def expand_quadratically(target: Unconstrained, point: Tensor) -> Quadratic:
    """Expand log p(x, z) around a point `[1, *batch, dim]` and complete the square."""
    point = point.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_joint(point).sum(), point, create_graph=True)
    rows = [
        torch.autograd.grad(gradient[..., i].sum(), point, retain_graph=True)[0]
        for i in range(target.dim)
    ]
    precision = -torch.stack(rows, -2)[0].detach().double()
    step, singular = torch.linalg.solve_ex(precision, gradient.detach()[0].double())
    if bool(singular.any()):
        raise ValueError(
            "the joint density does not fall off in every direction of the latents, so that its integral has no closed form: "
            "a covariance is singular; use ImportanceSampling or AIS"
        )
    mode = point.detach() + step.unsqueeze(0).to(point)
    return Quadratic(mode, target.log_joint(mode).detach().double(), precision)
