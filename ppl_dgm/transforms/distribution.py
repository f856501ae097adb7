"""The distribution of transformed noise, scored in one pass."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, ExpTransform, Transform, constraints

from ppl_dgm.transforms.bijection import (
    Conditioned,
    condition_all,
    forget,
    is_foreign,
    modules_of,
    parts_of,
    pull,
    push,
    sum_last,
)

__all__ = ["FlowDistribution", "Held", "few_noise"]

INVERSE: type[Transform] = type(ExpTransform().inv)  # of any transform, which it holds


class FlowDistribution(dist.TransformedDistribution):
    r"""Noise passed through transforms: x = t_n(... t_1(z) ...).

    $\log p(x) = \log p_z(z) + \sum_i \log |\det \partial t_i^{-1}|$, each transform's inverse and
    log-determinant computed in one pass, at its present parameters: torch's and Pyro's own
    distributions run the nets of a step twice, or return what a transform remembers from before its
    parameters were changed.

    Args:
        base_distribution: of z.
        transforms: those of this package, Pyro's, torch's; conditional ones at their context.

    Example:
        >>> import torch
        >>> from ppl_dgm.transforms import ActNorm
        >>> noise = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> FlowDistribution(noise, [ActNorm((3,))]).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:  # type: ignore[override]
        """Support of the flow.

        It is that of the last transform, without what the base has no mass for.
        """
        whole = dist.TransformedDistribution.support.fget(self)  # type: ignore[attr-defined]
        return whole if _is_real(self.base_dist.support) else Image(self, whole)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        """The flow of each of a batch, which remembers it."""
        new = super().expand(batch_shape, _instance)
        new.origin = getattr(self, "origin", self)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats of `[..., *event]`: `[...]`."""
        if self._validate_args:
            self._validate_sample(value)
        z, log_det = pull(self.transforms, value, len(self.event_shape))
        extra = z.dim() - (value.dim() - len(self.event_shape)) - len(self.base_dist.event_shape)
        return sum_last(self.base_dist.log_prob(z), extra) + log_det

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, *event]`."""
        return self._forgotten(super().sample(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, *event]` differentiably."""
        return self._forgotten(super().rsample(sample_shape))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draw differentiably, with log p(x) by the same pass.

        Draws are `[*sample_shape, *batch, *event]`, log densities `[*sample_shape, *batch]`.
        """
        base: Any = self.base_dist
        shape = torch.Size(sample_shape)
        z = base.rsample(shape)
        x, log_det = push(self.transforms, z, z.dim() - len(shape) - len(self.batch_shape))
        log_p = base.log_prob(z)
        extra = log_p.dim() - len(shape) - len(self.batch_shape)
        return x, sum_last(log_p, extra) - log_det

    def _forgotten(self, draws: Tensor) -> Tensor:
        for transform in self.transforms:
            forget(transform)
        return draws


def few_noise(flow: Any, num_draws: int) -> Tensor:
    """Draw noise for each flow of its own.

    A flow that was expanded to a batch is one; at contexts it is one for each of them.
    """
    one = getattr(flow, "origin", flow) if all(map(is_known, flow.transforms)) else flow
    contexts = [t.context.shape[:-1] for t in flow.transforms if isinstance(t, Conditioned)]
    batch = torch.broadcast_shapes(one.batch_shape, *contexts)
    spare = batch[: len(batch) - len(one.batch_shape)]
    return one.base_dist.sample(torch.Size((num_draws, *spare)))


def is_known(transform: Any) -> bool:
    """Whether a transform tells the context that it is at.

    Pyro's conditioned ones do not, and are no modules.
    """
    if parts := parts_of(transform):
        return not any(isinstance(part, Conditioned) for part in parts) and all(
            map(is_known, parts)
        )
    return isinstance(transform, nn.Module) or not is_foreign(transform)


class Image(constraints.Constraint):
    """Image of a bounded base as a constraint.

    torch takes a shifted exponential to be everywhere.
    """

    def __init__(self, flow: FlowDistribution, whole: Any) -> None:
        self.flow, self.whole = flow, whole
        self.event_dim = whole.event_dim
        super().__init__()

    def __repr__(self) -> str:
        return f"Image of {self.flow.base_dist.support}"

    def check(self, value: Tensor) -> Tensor:
        """Whether values `[..., *event]` come from the base's support: `[...]`."""
        base = self.flow.base_dist
        z, _ = pull(self.flow.transforms, value, len(self.flow.event_shape))
        inside = base.support.check(z)
        spare = inside.dim() - (value.dim() - len(self.flow.event_shape))
        inside = inside.flatten(-spare).all(-1) if spare > 0 else inside
        return inside & self.whole.check(value)


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


class Held(nn.Module):
    """Module that holds a distribution or transforms.

    Their tensors follow the module to other devices and dtypes.

    Modules among transforms are parts of this one, with their parameters; other tensors are
    constants.

    Args:
        held: a distribution, or a sequence of transforms.

    Raises:
        ValueError: the inverse of a module among the transforms.

    Example:
        >>> import torch
        >>> Held(dist.Normal(torch.zeros(3), 1.0)).double().held.loc.dtype
        torch.float64
    """

    def __init__(self, held: Any) -> None:
        super().__init__()
        self._held = (held,)
        transforms = held if isinstance(held, Sequence) else ()
        self.learned = nn.ModuleList(part for t in transforms for part in modules_of(t))

    def __getstate__(self) -> Any:
        if isinstance(self.held, Sequence):
            for transform in self.held:
                forget(transform)
        return self.__dict__

    @property
    def held(self) -> Any:
        """What is held."""
        return self._held[0]

    def forward(self, context: Tensor | None = None) -> Any:
        """The distribution, or the transforms at a context.

        Raises:
            ValueError: no context where a transform needs one, or one of another length.
        """
        return condition_all(self.held, context) if isinstance(self.held, Sequence) else self.held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Held":
        super()._apply(fn, recurse)
        self._held = (_converted(self.held, fn),)
        return self


def _converted(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Copy distributions and transforms with converted tensors.

    Modules stay as they are.
    """
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_converted(item, fn) for item in value)
    if isinstance(value, INVERSE):
        return _converted(value.inv, fn).inv
    if isinstance(value, (Distribution, Transform)):
        twin = copy.copy(value)
        parts = {name: part for name, part in vars(value).items() if name != "_inv"}
        vars(twin).update({name: _converted(part, fn) for name, part in parts.items()})
        if isinstance(twin, Transform):
            twin._inv = None  # made anew when asked for; the old one leads back here
        return twin
    return value
