"""Proposal distributions fitted to posterior draws: normal, mixture of Student t, flow.

Each takes draws `[draws, *batch, dim]` in unconstrained space, one fit for each datum of `batch`, and gives an object
with `sample(n) -> [n, *batch, dim]` and `log_prob(point) -> [n, *batch]`.
"""

from typing import Any, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Spline, permute, spline_coupling
from torch import Tensor, nn

RIDGE = 1e-6  # of the variances, keeps covariances positive definite
DEGREES_OF_FREEDOM = 5.0
EM_STEPS = 60
FLOW_LAYERS, FLOW_BINS, FLOW_BOUND = 3, 8, 5.0
FLOW_STEPS, FLOW_BATCH, FLOW_RATE = 300, 500, 1e-2


class Fitted(Protocol):
    """A distribution over points `[n, *batch, dim]`."""

    def sample(self, num: int) -> Tensor: ...

    def log_prob(self, point: Tensor) -> Tensor: ...


class Wrapped:
    """A torch distribution with batch shape `batch` and event shape `[dim]`."""

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        self.distribution = distribution

    def sample(self, num: int) -> Tensor:
        with torch.no_grad():
            return self.distribution.sample(torch.Size((num,)))

    def log_prob(self, point: Tensor) -> Tensor:
        with torch.no_grad():
            return self.distribution.log_prob(point)


def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[*batch, dim]` and covariance `[*batch, dim, dim]` of draws, kept positive definite."""
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


# ---- mixture of Student t ------------------------------------------------------------------------------------------


def fit_student_mixture(
    draws: Tensor, num_components: int, degrees: float = DEGREES_OF_FREEDOM, shrink: float = 1.0
) -> Wrapped:
    """Mixture of multivariate t by expectation maximisation (Peel and McLachlan 2000), its scales then shrunk."""
    mean, covariance = moments(draws)
    scales = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    white = (draws - mean) / scales
    responsibility = nearest(white, spread_centres(white, num_components))
    weight, loc, scale_tril = update(white, responsibility, responsibility)
    for _ in range(EM_STEPS):
        responsibility, weighted = expect(white, weight, loc, scale_tril, degrees)
        weight, loc, scale_tril = update(white, responsibility, weighted)
    loc = mean.unsqueeze(-2) + loc * scales.unsqueeze(-2)
    return Wrapped(
        student_mixture(weight, loc, shrink * scales[..., None, :, None] * scale_tril, degrees)
    )


def student_mixture(
    weight: Tensor, loc: Tensor, scale_tril: Tensor, degrees: float = DEGREES_OF_FREEDOM
) -> dist.MixtureSameFamily:
    """Mixture with weights `[*batch, K]`, locations `[*batch, K, dim]` and Cholesky factors `[*batch, K, dim, dim]`."""
    df = loc.new_full((), degrees)
    parts = dist.MultivariateStudentT(df, loc, scale_tril, validate_args=False)
    return dist.MixtureSameFamily(
        dist.Categorical(probs=weight, validate_args=False), parts, validate_args=False
    )


def spread_centres(white: Tensor, num: int) -> Tensor:
    """Draws far from each other (k-means++, Arthur and Vassilvitskii 2007): `[*batch, num, dim]`."""
    distance = torch.ones_like(white[..., 0])
    centres: list[Tensor] = []
    for _ in range(num):
        choice = dist.Categorical(
            probs=(distance + torch.finfo(white.dtype).tiny).movedim(0, -1)
        ).sample()
        index = choice.unsqueeze(0).unsqueeze(-1).expand(1, *white.shape[1:])
        centres.append(white.gather(0, index)[0])
        distance = torch.stack([(white - centre).square().sum(-1) for centre in centres]).amin(0)
    return torch.stack(centres, -2)


def nearest(white: Tensor, centres: Tensor) -> Tensor:
    """Which centre each draw is nearest to, as 0 and 1: `[draws, *batch, K]`."""
    distance = (white.unsqueeze(-2) - centres).square().sum(-1)
    return nn.functional.one_hot(distance.argmin(-1), centres.shape[-2]).to(white)


def expect(
    white: Tensor, weight: Tensor, loc: Tensor, scale_tril: Tensor, degrees: float
) -> tuple[Tensor, Tensor]:
    """Probability of each component for each draw, and the same times the t distribution's precision."""
    parts = student_mixture(weight, loc, scale_tril, degrees).component_distribution
    log_prob = parts.log_prob(white.unsqueeze(-2)) + weight.log()
    offset = torch.linalg.solve_triangular(
        scale_tril, (white.unsqueeze(-2) - loc).unsqueeze(-1), upper=False
    )
    precision = (degrees + white.shape[-1]) / (degrees + offset.square().sum((-2, -1)))
    responsibility = log_prob.softmax(-1)
    return responsibility, responsibility * precision


def update(
    white: Tensor, responsibility: Tensor, weighted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, locations and Cholesky factors that maximise the expected log density, one pseudo-draw each."""
    count = responsibility.sum(0) + torch.finfo(white.dtype).eps
    total = weighted.sum(0).unsqueeze(-1) + torch.finfo(white.dtype).eps
    loc = torch.einsum("n...k,n...i->...ki", weighted, white) / total
    centred = white.unsqueeze(-2) - loc
    scatter = torch.einsum("n...k,n...ki,n...kj->...kij", weighted, centred, centred)
    prior = (
        torch.eye(white.shape[-1], dtype=white.dtype, device=white.device) / count.shape[-1] ** 2
    )
    covariance = (scatter + prior) / (count + 1)[..., None, None]
    return (count + 1) / (count + 1).sum(-1, keepdim=True), loc, torch.linalg.cholesky(covariance)


# ---- flow ------------------------------------------------------------------------------------------------------------


class Flow(nn.Module):
    """Spline couplings of a Student t, whose tails they leave as they are, around the moments of the draws."""

    def __init__(self, draws: Tensor) -> None:
        super().__init__()
        mean, covariance = moments(draws)
        self.dim = draws.shape[-1]
        self.layers = nn.ModuleList(flow_layers(self.dim)).to(draws)
        self.affine = dist.transforms.LowerCholeskyAffine(mean, torch.linalg.cholesky(covariance))
        degrees = mean.new_full((), DEGREES_OF_FREEDOM)
        self.base = dist.MultivariateStudentT(
            degrees, torch.zeros_like(mean), torch.eye(self.dim).to(draws), validate_args=False
        )

    def transformed(self) -> dist.TransformedDistribution:
        """The distribution at the present parameters; made anew, since transforms remember what they computed."""
        layers: list[Any] = list(self.layers)
        if self.dim > 1:
            turn = permute(
                self.dim, torch.arange(self.dim - 1, -1, -1, device=self.base.loc.device)
            )
            layers = [part for layer in layers for part in (layer, turn)]
        for layer in layers:
            layer.clear_cache()
        return dist.TransformedDistribution(self.base, [*layers, self.affine], validate_args=False)


def flow_layers(dim: int) -> list[nn.Module]:
    """Monotone splines: of one variable, or of half of several given the other half (Durkan et al. 2019)."""
    if dim == 1:
        return [Spline(1, count_bins=FLOW_BINS, bound=FLOW_BOUND)]
    hidden = [max(16, 2 * dim)] * 2
    return [
        spline_coupling(dim, hidden_dims=hidden, count_bins=FLOW_BINS, bound=FLOW_BOUND)
        for _ in range(FLOW_LAYERS)
    ]


@torch.enable_grad()
def fit_flow(draws: Tensor) -> Wrapped:
    """Flow fitted to the draws `[draws, dim]` by maximum likelihood."""
    flow = Flow(draws)
    optimiser = torch.optim.Adam(flow.parameters(), FLOW_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, FLOW_STEPS)
    for _ in range(FLOW_STEPS):
        optimiser.zero_grad()
        batch = draws[torch.randint(draws.shape[0], (FLOW_BATCH,), device=draws.device)]
        (-flow.transformed().log_prob(batch).mean()).backward()
        optimiser.step()
        schedule.step()
    return Wrapped(flow.transformed())
