"""Distributions that Pyro lacks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class Autoregressive(TorchDistribution):
    r"""A vector whose density is a product of conditionals, each given by a function of the earlier dimensions.

    $\log p(x) = \sum_d \log p(x_d \mid x_{<d})$. The density takes one pass of the net, a draw D of them.

    Args:
        net: maps `[..., D]` to the parameters `[..., D, P]` of the conditionals; those of dimension d must depend only
            on the dimensions before it in the order.
        conditional: makes distributions of batch shape `[..., D]` of parameters `[..., D, P]`.
        start: zeros `[*batch, D]`, which tell dtype, device and batch shape.
        order: the dimensions in the order of generation; 0 to D - 1 by default.

    Shape:
        batch `[*batch]`, event `[D]`.

    Raises:
        ValueError: if the order is no permutation of the dimensions.

    Example:
        >>> import pyro.distributions as dist
        >>> def first_decides(x):  # the second dimension equals the first
        ...     logit = torch.stack([torch.zeros_like(x[..., 0]), 200 * x[..., 0] - 100], -1)
        ...     return logit.unsqueeze(-1)
        >>> pair = Autoregressive(first_decides, lambda p: dist.Bernoulli(logits=p.squeeze(-1)), torch.zeros(2))
        >>> draws = pair.sample((50,))
        >>> bool((draws[:, 0] == draws[:, 1]).all()), pair.log_prob(torch.ones(2))
        (True, tensor(-0.6931))
    """

    arg_constraints = {}  # type: ignore[assignment]  # noqa: RUF012

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        conditional: Callable[[Tensor], Any],
        start: Tensor,
        order: Sequence[int] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        num_dims = start.shape[-1]
        self.order = tuple(range(num_dims)) if order is None else tuple(order)
        if sorted(self.order) != list(range(num_dims)):
            raise ValueError(
                f"expected the order to be a permutation of 0, ..., {num_dims - 1}, got {list(self.order)}"
            )
        self.net, self.conditional, self.start = net, conditional, start
        super().__init__(start.shape[:-1], start.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """Support of the conditionals, for every dimension."""
        return constraints.independent(self.conditional(self.net(self.start)).support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Autoregressive":
        """The same distribution with a larger batch shape."""
        start = self.start.expand(torch.Size(batch_shape) + self.event_shape)
        return Autoregressive(self.net, self.conditional, start, self.order, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats of `[..., D]`: `[...]`."""
        if self._validate_args:
            self._validate_sample(value)
        return self.conditional(self.net(value)).log_prob(value).sum(-1).expand(self._result_shape(value))

    def _result_shape(self, value: Tensor) -> torch.Size:
        return torch.broadcast_shapes(value.shape[:-1], self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, D]`, one dimension after the other."""
        x = self.start.expand(torch.Size(sample_shape) + self.start.shape)
        dims = torch.arange(self.event_shape[0], device=x.device)
        with torch.no_grad():
            for dim in self.order:
                x = torch.where(dims == dim, self.conditional(self.net(x)).sample().to(x), x)
        return x


class OrderStatistics(TorchDistribution):
    r"""K independent draws of one distribution, sorted upwards: $K! \prod_k p(x_k)$ where $x_1 < \dots < x_K$.

    Components that are exchangeable otherwise get names by it: of the K! like modes of a mixture's posterior one is
    left, while every integral over a function that does not care for the names stays what it was.

    Args:
        base: the distribution of one draw, without batch or event dimensions.
        num_draws: K.

    Shape:
        batch `[]`, event `[K]`.

    Raises:
        ValueError: for a base with dimensions of its own or fewer than one draw.

    Example:
        >>> import pyro.distributions as dist
        >>> pair = OrderStatistics(dist.Uniform(0.0, 1.0), 2)
        >>> pair.log_prob(torch.tensor([0.2, 0.6])).exp()
        tensor(2.)
    """

    arg_constraints = {}  # type: ignore[assignment]  # noqa: RUF012
    support = constraints.ordered_vector  # type: ignore[assignment]

    def __init__(self, base: Any, num_draws: int, validate_args: bool | None = None) -> None:
        if num_draws < 1 or base.batch_shape or base.event_shape:
            raise ValueError(
                f"expected a scalar distribution and at least one draw, got shape {list(base.shape())}, {num_draws} draws"
            )
        self.base, self.has_rsample = base, base.has_rsample
        super().__init__(torch.Size(), torch.Size([num_draws]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats of `[..., K]`: `[...]`; minus infinity where x is not sorted."""
        log_prob = self.base.log_prob(value).sum(-1) + math.lgamma(value.shape[-1] + 1)
        return torch.where((value.diff() >= 0).all(-1), log_prob, -torch.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, K]`, differentiably if the base draws so."""
        return self._draw(self.base.rsample, sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, K]`."""
        with torch.no_grad():
            return self._draw(self.base.sample, sample_shape)

    def _draw(self, draw: Callable, sample_shape: Any) -> Tensor:
        return draw(torch.Size(sample_shape) + self.event_shape).sort(-1).values
