"""Numbers rounded down to levels, and noise within the cell of a level: the two halves of
dequantisation.
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class Floored(TorchDistribution):
    """The levels below real numbers: x = floor(y), log P(x | y) zero there and minus infinity
    elsewhere.

    Args:
        value: y, `[*batch, D]`.
        levels: number of levels that data may have, 0, ..., levels - 1.

    Shape:
        batch `[*batch]`, event `[D]`.

    Example:
        >>> law = Floored(torch.tensor([0.5, 2.9]), levels=4)
        >>> law.log_prob(torch.tensor([[0.0, 2.0], [0.0, 3.0]])), law.sample()
        (tensor([0., -inf]), tensor([0., 2.]))
    """

    arg_constraints = {"value": constraints.real_vector}  # type: ignore[assignment]  # noqa: RUF012

    def __init__(self, value: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.value, self.levels = value, levels
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Vectors of the whole numbers 0, ..., levels - 1."""
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Floored":
        """The same distribution with a larger batch shape."""
        value = self.value.expand(torch.Size(batch_shape) + self.event_shape)
        return Floored(value, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero or minus infinity, `[...]`, of levels `[..., D]`."""
        if self._validate_args:
            self._validate_sample(value)
        inside = (self.value.floor() == value).all(-1)
        return torch.where(inside, torch.zeros_like(self.value[..., 0]), -torch.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The levels, `[*sample_shape, *batch, D]`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.value.detach().floor().expand(shape)


class WithinCell(TorchDistribution):
    """y = x + u in the cell [x, x + 1) of levels x, u from a law of the unit cube.

    Args:
        level: x, `[*batch, D]`.
        noise: of u, batch `[*batch]` or what broadcasts to it, event `[D]`.

    Shape:
        batch `[*batch]`, event `[D]`.

    Example:
        >>> import pyro.distributions as dist
        >>> noise = dist.Uniform(torch.zeros(2), 1.0).to_event(1)
        >>> law = WithinCell(torch.tensor([[3.0, 0.0]]), noise)
        >>> law.sample().floor(), law.log_prob(torch.tensor([[3.2, 0.9]]))
        (tensor([[3., 0.]]), tensor([0.]))
    """

    arg_constraints = {"level": constraints.real_vector}  # type: ignore[assignment]  # noqa: RUF012

    def __init__(self, level: Tensor, noise: Any, validate_args: bool | None = None) -> None:
        self.level, self.noise, self.has_rsample = level, noise, noise.has_rsample
        super().__init__(level.shape[:-1], level.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """The cell."""
        return constraints.independent(constraints.interval(self.level, self.level + 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WithinCell":
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        level = self.level.expand(shape + self.event_shape)
        return WithinCell(level, self.noise.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(y) in nats of `[..., D]`: `[...]`."""
        return self.noise.log_prob(value - self.level)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, D]`, differentiably; sums never round up to x + 1."""
        shape = torch.Size(sample_shape) + self.batch_shape
        noise = self.noise.expand(self.batch_shape).rsample(torch.Size(sample_shape))
        most = 1 - torch.finfo(noise.dtype).eps * (1 + self.level.abs())
        return self.level + torch.minimum(noise.expand(shape + self.event_shape), most)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, D]`."""
        with torch.no_grad():
            return self.rsample(sample_shape)
