"""Test distributions with exact sampler and exact log-density.

They are two-dimensional, and the log-densities are normalised.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Transform, constraints

from ppl_dgm.checked import checked
from ppl_dgm.data.dataset import Dataset
from ppl_dgm.generators import seed_generators, unmoved_generators
from ppl_dgm.validation import check_positive, check_sizes

__all__ = [
    "DENSITIES",
    "banana",
    "funnel",
    "gaussian_grid",
    "gaussian_ring",
    "load_density",
    "pinwheel",
]


@checked
def gaussian_ring(
    num_modes: int = 8, radius: float = 2.0, scale: float = 0.1
) -> TorchDistributionMixin:
    """Equal mixture of round Gaussians on a circle.

        p(x) = 1/K sum_k N(x; r (cos 2 pi k/K, sin 2 pi k/K), scale^2 I)

    Returns:
        A distribution with event shape `[2]`.

    Example:
        >>> gaussian_ring().log_prob(torch.tensor([2.0, 0.0]))  # log(1 / (8 * 2 pi * 0.01))
        tensor(0.6879)
    """
    check_sizes(num_modes=num_modes)
    check_positive(radius=radius, scale=scale)
    angle = torch.arange(num_modes) * (2.0 * math.pi / num_modes)
    return _gaussian_mixture(radius * torch.stack([angle.cos(), angle.sin()], -1), scale)


@checked
def gaussian_grid(
    side: int = 5, spacing: float = 2.0, scale: float = 0.05
) -> TorchDistributionMixin:
    """Build a mixture of Gaussians on a square grid.

    It has `side`^2 round components of equal weight around the origin.

        p(x) = 1/K^2 sum_jk N(x; spacing (j - (K - 1)/2, k - (K - 1)/2), scale^2 I)

    With the defaults these are the 25 Gaussians on which mode counts are reported (Lin et al. 2018,
    PacGAN, section 4).

    Returns:
        A distribution with event shape `[2]`.

    Example:
        >>> gaussian_grid().log_prob(torch.zeros(2))  # log(1 / (25 * 2 pi * 0.0025))
        tensor(0.9347)
    """
    check_sizes(side=side)
    check_positive(spacing=spacing, scale=scale)
    ticks = spacing * (torch.arange(side) - (side - 1) / 2.0)
    return _gaussian_mixture(torch.cartesian_prod(ticks, ticks), scale)


@checked
def funnel(scale: float = 3.0, num_dims: int = 2) -> TorchDistributionMixin:
    """Build Neal's funnel, normals with a random common variance.

    It has a normal log-variance v and D - 1 normals of that variance (Neal 2003, Slice sampling,
    section 8).

        p(v, x) = N(v; 0, scale^2) prod_d N(x_d; 0, e^v)

    Returns:
        A distribution with event shape `[num_dims]`, v first.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> funnel(scale=1.0).log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)
    """
    check_sizes(2, num_dims=num_dims)
    check_positive(scale=scale)
    scales = torch.ones(num_dims)
    scales[0] = scale
    return dist.TransformedDistribution(
        dist.Normal(torch.zeros(num_dims), scales).to_event(1), [FunnelTransform()]
    )


@checked
def banana(curvature: float = 0.5, scale: float = 1.5) -> TorchDistributionMixin:
    """Build a Gaussian sheared along a parabola.

    See Haario, Saksman and Tamminen (1999, section 4).

        x_0 = scale z_0,  x_1 = z_1 + b (x_0^2 - scale^2),  z ~ N(0, I)

    The shear keeps volumes, so p(x) = N(x_0; 0, scale^2) N(x_1 - b (x_0^2 - scale^2); 0, 1).

    Returns:
        A distribution with event shape `[2]`.

    Example:
        >>> banana(curvature=1.0, scale=1.0).log_prob(torch.tensor([0.0, -1.0]))  # -log(2 pi)
        tensor(-1.8379)
    """
    check_positive(scale=scale)
    normal = dist.Normal(torch.zeros(2), torch.tensor([scale, 1.0])).to_event(1)
    return dist.TransformedDistribution(normal, [BananaTransform(curvature, scale)])


@checked
def pinwheel(
    num_arms: int = 5, rate: float = 0.8, radial: float = 0.3, tangential: float = 0.1
) -> TorchDistributionMixin:
    """Build a pinwheel of elongated Gaussians.

    They lie on a circle of radius one, each point turned by `rate` times its radius.

        p(x) = 1/K sum_k N(R(-theta_k - rate |x|) x; (1, 0), diag(radial^2, tangential^2)),
        theta_k = 2 pi k/K

    A rotation whose angle depends on the radius alone keeps volumes, so the density needs no
    correction (in the usual recipe the angle depends on an unobserved coordinate instead, and the
    density has no closed form).

    Returns:
        A distribution with event shape `[2]`.

    Example:
        >>> arm = pinwheel(num_arms=1, rate=0.0, radial=1.0, tangential=1.0)
        >>> arm.log_prob(torch.tensor([1.0, 0.0]))  # -log(2 pi)
        tensor(-1.8379)
    """
    check_sizes(num_arms=num_arms)
    check_positive(radial=radial, tangential=tangential)
    angle = torch.arange(num_arms) * (2.0 * math.pi / num_arms)
    turn = rotation(angle)
    factor = turn @ torch.tensor([radial, tangential]).diag()
    arms = dist.MultivariateNormal(turn[..., 0], covariance_matrix=factor @ factor.mT)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(num_arms)), arms)
    return dist.TransformedDistribution(mixture, [SwirlTransform(rate)])


@checked
def load_density(name: str, num_samples: int = 10_000, seed: int = 0) -> Dataset:
    """Draw a data set from a density with known truth.

    The exact draws from one of `DENSITIES` are split 80/10/10. A fitted program can be compared
    with the truth.

    Args:
        name: a key of `DENSITIES`; `DENSITIES[name]()` is the distribution itself, with `log_prob`
            in nats.
        num_samples: number of draws, all splits together.
        seed: of the draws; the global generators are left alone.

    Returns:
        A `Dataset` with `x` of shape `[num_samples, 2]`.

    Raises:
        ValueError: no such density.

    Example:
        >>> data = load_density("banana", num_samples=1000)
        >>> data
        Dataset('banana', [1000, 2] torch.float32, train/valid/test 800/100/100)
        >>> -DENSITIES["banana"]().log_prob(data.x).mean()  # entropy: log(2 pi e 1.5) = 3.24
        tensor(3.2...)
    """
    check_sizes(num_samples=num_samples)
    if name not in DENSITIES:
        raise ValueError(
            f"expected one of the densities {', '.join(sorted(DENSITIES))}, got {name!r}"
        )
    with unmoved_generators():
        seed_generators(seed)
        x = DENSITIES[name]().sample((num_samples,))
    num_train, num_valid = round(0.8 * num_samples), round(0.1 * num_samples)
    sizes = (num_train, num_valid, num_samples - num_train - num_valid)
    return Dataset(x, support=constraints.real, split_sizes=sizes, name=name)


def rotation(angle: Tensor) -> Tensor:
    """Return rotation matrices of the plane, `[..., 2, 2]`.

    `angle` `[...]` is in radians.
    """
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


class FunnelTransform(Transform):
    """Transform of normal noise to a funnel.

    (v, z) -> (v, e^(v/2) z), with log-Jacobian (D - 1) v / 2.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x[..., 1:] * (0.5 * x[..., :1]).exp()], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., :1], y[..., 1:] * (-0.5 * y[..., :1]).exp()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`[...]` for `x` of shape `[..., D]`."""
        return 0.5 * (x.shape[-1] - 1) * x[..., 0]


class BananaTransform(Transform):
    """Volume-preserving shear along a parabola.

    (a, z) -> (a, z + b (a^2 - scale^2)).
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, curvature: float, scale: float) -> None:
        super().__init__()
        self.curvature, self.scale = curvature, scale

    def _call(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 0], x[..., 1] + self._bend(x[..., 0])], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.stack([y[..., 0], y[..., 1] - self._bend(y[..., 0])], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`[...]` for `x` of shape `[..., 2]`: zero."""
        return torch.zeros_like(x[..., 0])

    def _bend(self, a: Tensor) -> Tensor:
        return self.curvature * (a.square() - self.scale**2)


class SwirlTransform(Transform):
    """x -> R(rate |x|) x, which keeps volumes and radii."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def _call(self, x: Tensor) -> Tensor:
        return self._turn(x, self.rate)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._turn(y, -self.rate)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`[...]` for `x` of shape `[..., 2]`: zero."""
        return torch.zeros_like(x[..., 0])

    @staticmethod
    def _turn(x: Tensor, rate: float) -> Tensor:
        return (rotation(rate * x.norm(dim=-1)) @ x.unsqueeze(-1)).squeeze(-1)


def _gaussian_mixture(means: Tensor, scale: float) -> TorchDistributionMixin:
    modes = dist.Normal(means, scale).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=means.new_zeros(len(means))), modes)


DENSITIES: dict[str, Callable[[], TorchDistributionMixin]] = {
    "ring": gaussian_ring,
    "grid": gaussian_grid,
    "funnel": funnel,
    "banana": banana,
    "pinwheel": pinwheel,
}
