"""Mixtures of multivariate Student t as heavy-tailed proposals.

They are fitted to draws.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_dgm.sampling.climbing import Modes
from ppl_dgm.sampling.kernels.targets import take
from ppl_dgm.sampling.proposals import DEGREES_OF_FREEDOM, moments

__all__ = ["StudentMixture", "both_mixtures", "fit_student_mixture", "mode_mixture"]

EM_STEPS = 60


@dataclass(frozen=True)
class StudentMixture:
    r"""Mixture of multivariate Student t distributions.

    Its density is $\sum_k \pi_k\, t_\nu(y; \mu_k, L_k L_k^\top)$.

    A draw picks its component first, and densities go through the components one by one, so that
    neither holds `num * K * dim` numbers.

    Args:
        weight: `[*batch, K]`, zero for components that a datum does not have.
        loc: `[*batch, K, dim]`.
        scale_tril: Cholesky factors of the scale matrices, `[*batch, K, dim, dim]`.
        degrees: degrees of freedom of all components.

    Example:
        >>> import torch
        >>> mixture = StudentMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0))
        >>> mixture.sample(3).shape, mixture.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    weight: Tensor
    loc: Tensor
    scale_tril: Tensor
    degrees: float = DEGREES_OF_FREEDOM

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Draw points `[num, *batch, dim]`."""
        shape = (num, *self.weight.shape[:-1])
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        chosen = torch.distributions.Categorical(self.weight, validate_args=False).sample((num,))
        noise = torch.randn(*shape, self.loc.shape[-1], **like)
        half = torch.full(shape, self.degrees / 2, **like)
        stretch = torch.distributions.Gamma(half, half).sample().rsqrt().unsqueeze(-1)
        point = torch.empty_like(noise)
        for k in range(self.weight.shape[-1]):
            moved = self.loc[..., k, :] + stretch * times(self.scale_tril[..., k, :, :], noise)
            point = torch.where((chosen == k).unsqueeze(-1), moved, point)
        return point

    @torch.no_grad()
    def log_prob(self, point: Tensor) -> Tensor:
        """Compute the log density at points `[n, *batch, dim]`.

        It is `[n, *batch]`, in nats.
        """
        return (self.component_log_probs(self.distances(point)) + self.weight.log()).logsumexp(-1)

    def distances(self, point: Tensor) -> Tensor:
        """Squared Mahalanobis distances to the components: `[n, *batch, K]`."""
        parts = []
        for k in range(self.weight.shape[-1]):
            offset = (point - self.loc[..., k, :]).movedim(0, -1)
            solved = torch.linalg.solve_triangular(
                self.scale_tril[..., k, :, :], offset, upper=False
            )
            parts.append(solved.square().sum(-2).movedim(-1, 0))
        return torch.stack(parts, -1)

    def component_log_probs(self, distances: Tensor) -> Tensor:
        """Compute the log densities of the components.

        They are at squared distances `[n, *batch, K]` and have the same shape.
        """
        dim, nu = self.loc.shape[-1], self.degrees
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2)
        constant -= 0.5 * dim * math.log(nu * math.pi)
        return constant - log_det - 0.5 * (nu + dim) * (distances / nu).log1p()


def times(factor: Tensor, points: Tensor) -> Tensor:
    """Matrices `[*batch, dim, dim]` times points `[n, *batch, dim]`."""
    return (factor @ points.movedim(0, -1)).movedim(-1, 0)


def fit_student_mixture(
    draws: Tensor,
    num_components: int,
    degrees: float = DEGREES_OF_FREEDOM,
    shrink: float = 1.0,
    steps: int = EM_STEPS,
) -> StudentMixture:
    """Fit a Student t mixture by expectation maximisation.

    Peel and McLachlan (2000). The scales are shrunk afterwards.

    Args:
        draws: `[draws, *batch, dim]`, one fit for each datum of `batch`.
        num_components: K.
        degrees: degrees of freedom.
        shrink: factor of the standard deviations afterwards.
        steps: of expectation maximisation.
    """
    mean, covariance = moments(draws)
    scales = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    white = (draws - mean) / scales
    share = nearest(white, spread_centres(white, num_components))
    mixture = maximise(white, share, share, degrees)
    for _ in range(steps):
        mixture = maximise(white, *expect(white, mixture), degrees)
    loc = mean.unsqueeze(-2) + mixture.loc * scales.unsqueeze(-2)
    scale_tril = shrink * scales[..., None, :, None] * mixture.scale_tril
    return StudentMixture(mixture.weight, loc, scale_tril, degrees)


def spread_centres(white: Tensor, num: int) -> Tensor:
    """Choose draws that are far from each other.

    They are `[*batch, num, dim]`, by k-means++ (Arthur and Vassilvitskii 2007).
    """
    distance = torch.ones_like(white[..., 0])
    centres: list[Tensor] = []
    for _ in range(num):
        probs = (distance + torch.finfo(white.dtype).tiny).movedim(0, -1)
        choice = torch.distributions.Categorical(probs=probs).sample()
        index = choice.unsqueeze(0).unsqueeze(-1).expand(1, *white.shape[1:])
        centres.append(white.gather(0, index)[0])
        distance = torch.stack([(white - centre).square().sum(-1) for centre in centres]).amin(0)
    return torch.stack(centres, -2)


def nearest(white: Tensor, centres: Tensor) -> Tensor:
    """Assign each draw to its nearest centre.

    The result has entries 0 and 1, `[draws, *batch, K]`.
    """
    distance = torch.stack([(white - centre).square().sum(-1) for centre in centres.unbind(-2)], -1)
    return nn.functional.one_hot(distance.argmin(-1), centres.shape[-2]).to(white)


def expect(white: Tensor, mixture: StudentMixture) -> tuple[Tensor, Tensor]:
    """Compute the probability of each component for each draw.

    The same times the precision of the Student t is returned too.
    """
    distances = mixture.distances(white)
    log_prob = mixture.component_log_probs(distances) + mixture.weight.log()
    responsibility = log_prob.softmax(-1)
    precision = (mixture.degrees + white.shape[-1]) / (mixture.degrees + distances)
    return responsibility, responsibility * precision


def maximise(
    white: Tensor, responsibility: Tensor, weighted: Tensor, degrees: float
) -> StudentMixture:
    """Find the mixture that maximises the expected log density.

    One pseudo-draw is added for each component.
    """
    count = responsibility.sum(0) + torch.finfo(white.dtype).eps
    total = weighted.sum(0).unsqueeze(-1) + torch.finfo(white.dtype).eps
    loc = torch.einsum("n...k,n...i->...ki", weighted, white) / total
    scatter = torch.stack(
        [scatter_around(white, weighted[..., k], loc[..., k, :]) for k in range(count.shape[-1])],
        -3,
    )
    prior = (
        torch.eye(white.shape[-1], dtype=white.dtype, device=white.device) / count.shape[-1] ** 2
    )
    covariance = (scatter + prior) / (count + 1)[..., None, None]
    weight = (count + 1) / (count + 1).sum(-1, keepdim=True)
    return StudentMixture(weight, loc, torch.linalg.cholesky(covariance), degrees)


def scatter_around(white: Tensor, weight: Tensor, loc: Tensor) -> Tensor:
    """Compute the weighted scatter matrix around a point.

    It is that of draws, `[*batch, dim, dim]`.
    """
    centred = weight.sqrt().unsqueeze(-1) * (white - loc)
    return torch.einsum("n...i,n...j->...ij", centred, centred)


def mode_mixture(modes: Modes, new: Tensor, degrees: float = DEGREES_OF_FREEDOM) -> StudentMixture:
    """Build a Student-t mixture at the distinct modes.

    Components are weighted by their Laplace evidence, and wider than its normals the fewer degrees
    of freedom they have.

    Where a datum has no mode, its best optimum stands in.
    """
    logits = torch.where(new, modes.log_z, -torch.inf)
    logits = torch.where(new.any(0), logits, modes.log_joint.nan_to_num(neginf=-1e300))
    kept = int(new.sum(0).max())
    logits, order = logits.topk(kept, 0)
    weight = logits.softmax(0).movedim(0, -1)
    point = take(modes.point.double(), order).movedim(0, -2)
    flat = take(modes.scale_tril.flatten(-2), order).unflatten(-1, modes.scale_tril.shape[-2:])
    widened = math.sqrt(degrees / (degrees - 1))
    return StudentMixture(weight, point, widened * flat.movedim(0, -3), degrees)


def both_mixtures(first: StudentMixture, second: StudentMixture, share: float) -> StudentMixture:
    """Join two mixtures, the second with a share."""
    pairs = zip((first.loc, first.scale_tril), (second.loc, second.scale_tril), strict=True)
    loc, scale_tril = (
        torch.cat([one, two.to(one)], dim) for (one, two), dim in zip(pairs, (-2, -3), strict=True)
    )
    weight = torch.cat([(1 - share) * first.weight, share * second.weight.to(first.weight)], -1)
    return StudentMixture(weight, loc, scale_tril, first.degrees)
