"""Distributions of rounded numbers and of noise within cells.

They are the two halves of dequantisation.
"""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppl_dgm.checked import checked

__all__ = ["Floored", "WithinCell"]


class Whole(constraints.Constraint):
    """Whole numbers."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """Whether numbers are whole: `[...]`."""
        return value % 1 == 0


class Floored(TorchDistribution):
    """Real numbers rounded down to levels, as a distribution.

    x = floor(y). log P(x | y) is zero there and minus infinity elsewhere.

    Args:
        value: y, `[*batch, D]`.

    Shape:
        batch `[*batch]`, event `[D]`.

    Example:
        >>> law = Floored(torch.tensor([0.5, 2.9]))
        >>> law.log_prob(torch.tensor([[0.0, 2.0], [0.0, 3.0]])), law.sample()
        (tensor([0., -inf]), tensor([0., 2.]))
    """

    arg_constraints = {"value": constraints.real_vector}  # type: ignore[assignment]  # noqa: RUF012

    support = constraints.independent(Whole(), 1)  # type: ignore[assignment]

    @checked
    def __init__(self, value: Tensor, validate_args: bool | None = None) -> None:
        self.value = value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Floored":
        """The same distribution with a larger batch shape."""
        value = self.value.expand(torch.Size(batch_shape) + self.event_shape)
        return Floored(value, validate_args=False)

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
    """Level plus noise within its cell [x, x + 1).

    y = x + u for levels x, with u from a distribution on the unit cube. The density is zero
    elsewhere.

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
    support = constraints.real_vector  # type: ignore[assignment]

    @checked
    def __init__(self, level: Tensor, noise: Any, validate_args: bool | None = None) -> None:
        self.level, self.noise, self.has_rsample = level, noise, noise.has_rsample
        super().__init__(level.shape[:-1], level.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WithinCell":
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        level = self.level.expand(shape + self.event_shape)
        return WithinCell(level, self.noise.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density in nats.

        log q(y) of `[..., D]` is `[...]`. It is minus infinity outside of the cell.
        """
        noise = value - self.level
        inside = ((noise >= 0) & (noise < 1)).all(-1)
        return torch.where(inside, self.noise.log_prob(noise.clamp(0, 1)), -torch.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw reparameterised samples `[*sample_shape, *batch, D]`.

        Sums never round up to x + 1.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        noise = self.noise.expand(self.batch_shape).rsample(torch.Size(sample_shape))
        most = 1 - torch.finfo(noise.dtype).eps * (1 + self.level.abs())
        return self.level + torch.minimum(noise.expand(shape + self.event_shape), most)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, D]`."""
        with torch.no_grad():
            return self.rsample(sample_shape)
