"""Densities that are products of conditionals, and mixtures of such."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppl_dgm.bars import counted_steps
from ppl_dgm.checked import checked

__all__ = ["Autoregressive", "EqualMixture"]

Step = Callable[[int, Tensor], Tensor]
Groups = Sequence[int | Sequence[int]]  # dimensions, or groups that are drawn together


class Autoregressive(TorchDistribution):
    r"""A vector whose density is a product of conditionals.

    $\log p(x) = \sum_d \log p(x_d \mid x_{<d})$. The density takes one pass of the net, a draw D
    steps, or one for each group of dimensions that are independent given the earlier groups.

    Args:
        net: maps `[..., D]` to the parameters `[..., D, P]` of the conditionals; those of dimension
            d must depend only on the dimensions before it in the order.
        conditional: makes distributions of batch shape `[..., D]` of parameters `[..., D, P]`.
        start: zeros `[*batch, D]`, which tell dtype, device and batch shape.
        order: the dimensions in the order of generation; 0 to D - 1 by default. An item may be a
            group of dimensions, drawn together.
        stepper: takes zeros `[..., D]` and makes a function of (t, x) that gives the parameters
            `[..., P]` of the t-th item of the order, `[..., n, P]` of a group, when called for
            t = 0, 1, ...; by default it runs the net anew for each.
        draw: draws `[...]` of parameters `[..., P]`; by default from `conditional`.
        progress: show a bar over the dimensions of draws that last.

    Shape:
        batch `[*batch]`, event `[D]`.

    Raises:
        ValueError: if the order is no permutation of the dimensions.

    Example:
        >>> import pyro.distributions as dist
        >>> def first_decides(x):  # the second dimension equals the first
        ...     logit = torch.stack([torch.zeros_like(x[..., 0]), 200 * x[..., 0] - 100], -1)
        ...     return logit.unsqueeze(-1)
        >>> binary = lambda params: dist.Bernoulli(logits=params.squeeze(-1))
        >>> pair = Autoregressive(first_decides, binary, torch.zeros(2))
        >>> draws = pair.sample((50,))
        >>> bool((draws[:, 0] == draws[:, 1]).all()), pair.log_prob(torch.ones(2))
        (True, tensor(-0.6931))
    """

    arg_constraints = {}  # type: ignore[assignment]  # noqa: RUF012

    @checked
    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        conditional: Callable[[Tensor], Any],
        start: Tensor,
        order: Groups | None = None,
        stepper: Callable[[Tensor], Step] | None = None,
        draw: Callable[[Tensor], Tensor] | None = None,
        progress: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        num_dims = start.shape[-1]
        self.order = tuple(range(num_dims)) if order is None else tuple(order)
        if sorted(chain(*as_groups(self.order))) != list(range(num_dims)):
            raise ValueError(
                f"expected the order to be a permutation of 0, ..., {num_dims - 1}, "
                f"got {list(self.order)}"
            )
        self.net, self.conditional, self.start = net, conditional, start
        self.narrow = start  # before `expand`, whose rows all have the same support
        self.stepper, self.draw, self.progress = stepper, draw, progress
        super().__init__(start.shape[:-1], start.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """Support of the conditionals, for every dimension."""
        return constraints.independent(self.conditional(self.net(self.narrow)).support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Autoregressive":
        """The same distribution with a larger batch shape."""
        start = self.start.expand(torch.Size(batch_shape) + self.event_shape)
        settings = (self.order, self.stepper, self.draw, self.progress)
        wide = Autoregressive(self.net, self.conditional, start, *settings, validate_args=False)
        wide.narrow = self.narrow
        return wide

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats of `[..., D]`: `[...]`."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self.conditional(self.net(value)).log_prob(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return log_probs.sum(-1).expand(shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, D]`, one dimension after the other."""
        x = self.start.expand(torch.Size(sample_shape) + self.start.shape)
        draw = self.draw or (lambda params: draw_one(self.conditional, params))
        groups = as_groups(self.order)
        places = torch.tensor([*chain(*groups)], device=x.device).split([*map(len, groups)])
        with torch.no_grad():
            step = self._naive_step if self.stepper is None else self.stepper(x)
            for t in counted_steps(len(places), "sample", self.progress):
                drawn = draw(step(t, x)).to(x)
                x = x.index_copy(-1, places[t], drawn.reshape(*x.shape[:-1], -1))
        return x

    def _naive_step(self, t: int, x: Tensor) -> Tensor:
        """Compute the parameters of one step by a whole pass."""
        return self.net(x)[..., self.order[t], :]


def as_groups(order: Groups) -> list[list[int]]:
    """An order in groups, each of one or more dimensions."""
    return [list(item) if isinstance(item, Iterable) else [item] for item in order]


def draw_one(conditional: Callable[[Tensor], Any], params: Tensor) -> Tensor:
    """Draw dimensions `[...]` from their conditional distributions.

    The parameters have shape `[..., P]`.
    """
    return conditional(params.unsqueeze(-2)).sample().squeeze(-1)


class EqualMixture(TorchDistribution):
    r"""Mixture of distributions with equal weights.

    $p(x) = \frac1K \sum_k p_k(x)$.

    Args:
        laws: K distributions of the same batch and event shape.

    Example:
        >>> import pyro.distributions as dist
        >>> laws = [dist.Bernoulli(torch.tensor([p, 0.5])).to_event(1) for p in (0.2, 0.6)]
        >>> EqualMixture(laws).log_prob(torch.ones(2)).exp()
        tensor(0.2000)
    """

    arg_constraints = {}  # type: ignore[assignment]  # noqa: RUF012

    @checked
    def __init__(self, laws: Sequence[Any], validate_args: bool | None = None) -> None:
        self.laws = tuple(laws)
        first = self.laws[0]
        super().__init__(first.batch_shape, first.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """Support of the components."""
        return self.laws[0].support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "EqualMixture":
        """The same distribution with a larger batch shape."""
        return EqualMixture([law.expand(batch_shape) for law in self.laws], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats: log-mean-exp over the components."""
        log_probs = torch.stack([law.log_prob(value) for law in self.laws])
        return log_probs.logsumexp(0) - math.log(len(self.laws))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, *event]`, a component for each at random."""
        draws = torch.stack([law.sample(sample_shape) for law in self.laws])
        ones = (1,) * len(self.event_shape)
        shape = torch.Size(sample_shape) + self.batch_shape + ones
        choice = torch.randint(len(self.laws), shape, device=draws.device)
        return draws.gather(0, choice.expand(draws.shape[1:]).unsqueeze(0)).squeeze(0)
