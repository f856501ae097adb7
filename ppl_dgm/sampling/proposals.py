"""Proposal distributions fitted to posterior draws: normal and flow.

Each takes draws `[draws, *batch, dim]` in unconstrained space, one fit for each datum of `batch`,
and gives an object with `sample(n) -> [n, *batch, dim]` and `log_prob(point) -> [n, *batch]`.
"""

from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.transforms import Coupling, Elementwise, FlowDistribution, Spline
from ppl_dgm.transforms.distribution import Held

__all__ = [
    "DEGREES_OF_FREEDOM",
    "CentredFlow",
    "Fitted",
    "Wrapped",
    "fit_flow",
    "fit_normal",
    "flow_layers",
    "moments",
]

RIDGE = 1e-6  # of the variances, keeps covariances positive definite
DEGREES_OF_FREEDOM = 5.0
FLOW_LAYERS, FLOW_BINS, FLOW_BOUND = 3, 8, 5.0
FLOW_STEPS, FLOW_BATCH, FLOW_RATE = 300, 500, 1e-2


class Fitted(Protocol):
    """A distribution over points `[n, *batch, dim]`."""

    def sample(self, num: int) -> Tensor: ...

    def log_prob(self, point: Tensor) -> Tensor: ...


class Wrapped:
    """Torch distribution used as a fitted proposal.

    Its batch shape is `batch`, its event shape `[dim]`.
    """

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        self.distribution = distribution

    def sample(self, num: int) -> Tensor:
        with torch.no_grad():
            return self.distribution.sample(torch.Size((num,)))

    def log_prob(self, point: Tensor) -> Tensor:
        with torch.no_grad():
            return self.distribution.log_prob(point)


def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and covariance of draws.

    They are `[*batch, dim]` and `[*batch, dim, dim]`. The covariance is kept positive definite.
    """
    mean = draws.mean(0)
    centred = draws - mean
    covariance = torch.einsum("n...i,n...j->...ij", centred, centred) / max(draws.shape[0] - 1, 1)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    floor = RIDGE * variances + torch.finfo(draws.dtype).tiny
    return mean, covariance + floor.diag_embed()


def fit_normal(draws: Tensor) -> Wrapped:
    """Normal with the mean and covariance of the draws."""
    mean, covariance = moments(draws)
    return Wrapped(
        dist.MultivariateNormal(
            mean, scale_tril=torch.linalg.cholesky(covariance), validate_args=False
        )
    )


# ---- flow ----------------------------------------------------------------------------------------


class CentredFlow(nn.Module):
    """Flow around the moments of the draws.

    The layers transform a Student t, whose tails splines and bounded scales leave heavy.
    """

    def __init__(self, draws: Tensor, layers: nn.ModuleList) -> None:
        super().__init__()
        mean, covariance = moments(draws)
        affine = dist.transforms.LowerCholeskyAffine(mean, torch.linalg.cholesky(covariance))
        self.transforms = Held((*layers.to(draws), affine))
        degrees = mean.new_full((), DEGREES_OF_FREEDOM)
        identity = torch.eye(len(mean)).to(draws)
        self.base = dist.MultivariateStudentT(
            degrees, torch.zeros_like(mean), identity, validate_args=False
        )

    def transformed(self) -> FlowDistribution:
        """The distribution at the present parameters."""
        return FlowDistribution(self.base, self.transforms(), validate_args=False)


def flow_layers(dim: int) -> nn.ModuleList:
    """Create the spline layers of the flow.

    They are monotone splines of one variable, or of half of several given the other half (Durkan et
    al. 2019).
    """
    spline = Spline(FLOW_BINS, FLOW_BOUND)
    if dim == 1:
        return nn.ModuleList([Elementwise((1,), spline)])
    hidden = [max(16, 2 * dim)] * 2
    return nn.ModuleList(
        Coupling(dim, spline, flipped=place % 2 == 1, hidden=hidden) for place in range(FLOW_LAYERS)
    )


@torch.enable_grad()
def fit_flow(draws: Tensor) -> Wrapped:
    """Flow fitted to the draws `[draws, dim]` by maximum likelihood."""
    flow = CentredFlow(draws, flow_layers(draws.shape[-1]))
    optimiser = torch.optim.Adam(flow.parameters(), FLOW_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, FLOW_STEPS)
    for _ in range(FLOW_STEPS):
        optimiser.zero_grad()
        batch = draws[torch.randint(draws.shape[0], (FLOW_BATCH,), device=draws.device)]
        (-flow.transformed().log_prob(batch).mean()).backward()
        optimiser.step()
        schedule.step()
    return Wrapped(flow.transformed())
