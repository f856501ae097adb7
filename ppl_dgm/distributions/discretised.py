"""Distributions that Pyro lacks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Tensor
from torch.nn import functional as F

from ppl_dgm.checked import checked

__all__ = ["ContinuousBernoulli", "DiscretisedLogisticMixture", "OrderStatistics"]


class OrderStatistics(TorchDistribution):
    r"""Sorted independent draws from one distribution.

    The density of K draws is $K! \prod_k p(x_k)$ where $x_1 < \dots < x_K$.

    Components that are exchangeable otherwise get names by it: of the K! like modes of a mixture's
    posterior one is left, while every integral over a function that does not care for the names
    stays what it was.

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

    @checked
    def __init__(self, base: Any, num_draws: int, validate_args: bool | None = None) -> None:
        if num_draws < 1 or base.batch_shape or base.event_shape:
            raise ValueError(
                "expected a scalar distribution and at least one draw, got shape "
                f"{list(base.shape())}, {num_draws} draws"
            )
        self.base, self.has_rsample = base, base.has_rsample
        super().__init__(torch.Size(), torch.Size([num_draws]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density of sorted draws, in nats.

        log p(x) of `[..., K]` is `[...]`. It is minus infinity where x is not sorted.
        """
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


class ContinuousBernoulli(TorchDistribution):
    r"""Continuous Bernoulli distribution on [0, 1], given by its logit.

    Its density is $p(x) \propto \lambda^x (1 - \lambda)^{1 - x}$ (Loaiza-Ganem and Cunningham
    2019).

    With $\eta = \mathrm{logit}\, \lambda$ and $h = |\eta| / 2$,

    $$\log p(x) = \eta (x - \tfrac12) + \log(h / \sinh h),$$

    normalised for logits of any size; torch's and Pyro's, which compute it of $\lambda$, integrate
    to less than one from |logit| = 16 on in float32.

    Args:
        logits: `[*batch]`.

    Shape:
        batch `[*batch]`, event `[]`.

    Example:
        >>> law = ContinuousBernoulli(torch.tensor([0.0, -40.0]))
        >>> law.log_prob(torch.zeros(2)).exp().round(decimals=3)
        tensor([ 1., 40.])
    """

    arg_constraints = {"logits": constraints.real}  # type: ignore[assignment]  # noqa: RUF012
    support = constraints.unit_interval  # type: ignore[assignment]
    has_rsample = True

    @checked
    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ContinuousBernoulli":
        """The same distribution with a larger batch shape."""
        return ContinuousBernoulli(self.logits.expand(torch.Size(batch_shape)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """$\\tfrac12 (1 + \\coth(\\eta / 2) - 2 / \\eta)$."""
        small, half = self._halves()
        series = half / 3 - half**3 / 45 + 2 * half**5 / 945
        return 0.5 + 0.5 * torch.where(
            small, series, 1 / self._away(small, half).tanh() - 1 / self._away(small, half)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats of `[...]`."""
        if self._validate_args:
            self._validate_sample(value)
        small, half = self._halves()
        series = -(half**2) / 6 + half**4 / 180 - half**6 / 2835
        size = self._away(small, half).abs()
        normaliser = torch.where(
            small, series, (2 * size).log() - size - torch.log1p(-(-2 * size).exp())
        )
        return self.logits * (value - 0.5) + normaliser

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch]` by the inverse of the distribution function."""
        logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        size = logits.abs().clamp_min(torch.finfo(logits.dtype).eps)
        draw = -torch.log1p(torch.rand_like(logits) * torch.expm1(-size)) / size
        return torch.where(logits > 0, 1 - draw, draw).clamp(0, 1)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Return where the logit is small, and half the logit.

        A series is used where h is small.
        """
        half = self.logits / 2
        return half.abs() < 0.1, half

    @staticmethod
    def _away(small: Tensor, half: Tensor) -> Tensor:
        """Half the logit, where small replaced by one."""
        return torch.where(small, 1.0, half)


class DiscretisedLogisticMixture(TorchDistribution):
    r"""Mixture of logistic distributions rounded to discrete levels.

    The levels are 0, ..., levels - 1 (Salimans et al. 2017, equation 2).

    $P(x) = \sum_k \pi_k [\sigma((u_x + h - \mu_k) / s_k) - \sigma((u_x - h - \mu_k) / s_k)]$ with
    the levels $u_x$ spread over [-1, 1], h half their distance, and the tails added to the
    outermost levels. Differences of sigmoids are taken as $\sigma(a) - \sigma(b) = \sigma(a)
    \sigma(-b) (1 - e^{b - a})$, exact in both tails.

    Args:
        logits: of the weights pi, `[*batch, K]`.
        loc: mu, `[*batch, K]`.
        scale: s, `[*batch, K]`.
        levels: number of levels.

    Shape:
        batch `[*batch]`, event `[]`.

    Raises:
        ValueError: fewer than two levels.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> law = DiscretisedLogisticMixture(zero, zero, one, levels=4)
        >>> law.log_prob(torch.arange(4.0)).exp()
        tensor([0.3392, 0.1608, 0.1608, 0.3392])
    """

    arg_constraints = {  # type: ignore[assignment]  # noqa: RUF012
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
    }
    has_enumerate_support = True

    @checked
    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        if levels < 2:
            raise ValueError(f"levels is {levels}; expected at least 2, e.g. 256 for bytes")
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        self.levels = levels
        super().__init__(self.logits.shape[:-1], torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The whole numbers 0, ..., levels - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretisedLogisticMixture":
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape) + self.logits.shape[-1:]
        logits, loc, scale = (part.expand(shape) for part in (self.logits, self.loc, self.scale))
        return DiscretisedLogisticMixture(logits, loc, scale, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(x) in nats of levels `[...]`."""
        if self._validate_args:
            self._validate_sample(value)
        level = value.unsqueeze(-1)
        half = 1 / (self.levels - 1)
        centred = 2 * half * level - 1 - self.loc
        upper, lower = (centred + half) / self.scale, (centred - half) / self.scale
        below_top = torch.where(level < self.levels - 1, F.logsigmoid(upper), 0.0)
        above_bottom = torch.where(level > 0, F.logsigmoid(-lower), 0.0)
        inner = (level > 0) & (level < self.levels - 1)
        width = torch.where(inner, torch.log(-torch.expm1(-2 * half / self.scale)), 0.0)
        return (self.logits.log_softmax(-1) + below_top + above_bottom + width).logsumexp(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels `[*sample_shape, *batch]`."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.logits.shape
            k = Categorical(logits=self.logits.expand(shape)).sample().unsqueeze(-1)
            loc, scale = (
                part.expand(shape).gather(-1, k).squeeze(-1) for part in (self.loc, self.scale)
            )
            uniform = torch.rand_like(loc).clamp_min(torch.finfo(loc.dtype).tiny)
            draw = loc + scale * (uniform.log() - (-uniform).log1p())
            return ((draw + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels, `[levels, *batch]`, or `[levels, 1, ..., 1]`."""
        values = torch.arange(self.levels, dtype=self.loc.dtype, device=self.loc.device)
        values = values.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values
