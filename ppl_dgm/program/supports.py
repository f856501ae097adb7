"""Supports of distributions.

The formula of a density may go on outside its support: without validation, Exponential(1) gives log
p(-1) = 1.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import MaskedMixture
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints, transform_to

__all__ = [
    "finite_value",
    "in_support",
    "inner_point",
    "innermost",
    "is_binary",
    "is_real",
    "moves",
    "support_of",
]


def in_support(fn: Any, value: Tensor) -> Tensor | None:
    """Check whether values lie in the support of a distribution.

    Values are `[*batch, *event]`, the result is `[*batch]`. It is None if the support is the whole
    space, or discrete.

    A transformed distribution is asked for its base too: torch takes a shifted exponential to be
    everywhere.
    """
    inner = innermost(fn)
    if not is_bounded(inner):
        return None
    if isinstance(inner, MaskedMixture):
        return all_of(in_component(inner, value), dims(fn) - dims(inner))
    inside = support_of(inner).check(value)
    if isinstance(inner, TransformedDistribution) and is_bounded(inner.base_dist):
        base: Any = value
        for transform in reversed(inner.transforms):
            base = transform.inv(base)
        inside = inside & all_of(
            in_support(inner.base_dist, base), dims(inner) - dims(inner.base_dist)
        )
    return all_of(inside, dims(fn) - dims(inner))


def in_component(fn: Any, value: Tensor) -> Tensor:
    """Check values against the component that the mask picks.

    Pyro's own support takes values of the mask's shape alone.
    """
    parts = [in_support(part, value) for part in (fn.component1, fn.component0)]
    one, other = [torch.ones_like(fn.mask) if part is None else part for part in parts]
    return torch.where(fn.mask, one, other)


def inner_point(fn: Any, like: Tensor) -> Tensor:
    """Return a value `[*batch, *event]` in the support.

    It stands where masks take out what is observed.

    Nothing is drawn; where no such value is known, it is the observed one with its NaN at zero.
    """
    inner = innermost(fn)
    support = of_entries(support_of(inner))
    zeros = like.new_zeros(inner.batch_shape + inner.event_shape)
    if isinstance(support, type(constraints.multinomial(1))):
        return (
            first_category(zeros)
            * torch.as_tensor(support.upper_bound, device=like.device)[..., None]
        )
    if isinstance(support, type(constraints.one_hot)):
        return first_category(zeros)
    if support.is_discrete:
        return zeros + getattr(support, "lower_bound", 0)
    try:
        return transform_to(support_of(inner))(zeros)
    except NotImplementedError:
        return like.nan_to_num()


def finite_value(site: Any) -> Any:
    """The value that a site drew, if it is finite.

    Otherwise one in its support.
    """
    value = site["value"]
    if not isinstance(value, Tensor) or bool(value.isfinite().all()):
        return value
    return inner_point(site["fn"], value)


def first_category(zeros: Tensor) -> Tensor:
    """Return one-hot vectors of the first category.

    They have the shape of the zeros.
    """
    return torch.cat([torch.ones_like(zeros[..., :1]), zeros[..., 1:]], -1)


def innermost(fn: Any) -> Any:
    """Strip `to_event`, `mask` and `expand` wrappers from a distribution."""
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return fn


def support_of(fn: Any) -> Any:
    """Return the support of a distribution.

    Flows of zuko state none: with a base on the whole space it is their transform's domain.

    Raises:
        ValueError: for a distribution that states none.
    """
    inner = innermost(fn)
    try:
        return fn.support
    except NotImplementedError as error:
        flow = getattr(inner, "dist", inner)  # inside pyro.contrib.zuko.ZukoToPyro
        if not (hasattr(flow, "transform") and is_real(support_of(flow.base))):
            raise ValueError(
                f"{type(flow).__name__} does not state its support; give its class a property "
                "`support`, e.g. constraints.real_vector"
            ) from error
        domain, extra = flow.transform.domain, dims(fn) - flow.transform.domain.event_dim
        return constraints.independent(domain, extra) if extra > 0 else domain


def is_bounded(fn: Any) -> bool:
    """Whether the support of a continuous distribution leaves anything out."""
    inner = innermost(fn)
    if isinstance(inner, MaskedMixture):
        return is_bounded(inner.component0) or is_bounded(inner.component1)
    if isinstance(inner, TransformedDistribution) and is_bounded(inner.base_dist):
        return True
    support = support_of(inner)
    return not (support.is_discrete or is_real(support))


def of_entries(support: Any) -> Any:
    """Return the support of one entry of an event."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_real(support: Any) -> bool:
    """Whether a support is all of R^n."""
    return isinstance(of_entries(support), type(constraints.real))


def is_binary(support: Any) -> bool:
    """Whether every entry is 0 or 1."""
    return of_entries(support) is constraints.boolean


def dims(fn: Any) -> int:
    """Number of dimensions of an event."""
    return len(fn.event_shape)


def all_of(inside: Any, event_dims: int) -> Any:
    """Reduce the dimensions that belong to an event."""
    return inside.flatten(-event_dims).all(-1) if event_dims > 0 else inside


def bounds(fn: Any) -> Iterator[Tensor]:
    """The tensors on which a distribution's support depends."""
    inner = innermost(fn)
    parts = [support_of(inner)]
    if isinstance(inner, TransformedDistribution):
        parts += inner.transforms
        yield from bounds(inner.base_dist)
    for part in parts:
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def moves(site: Any, other: Any) -> bool:
    """Check whether a site's support or value changes between runs."""
    tensors = [(run["value"], *bounds(run["fn"])) for run in (site, other)]
    return not all(torch.equal(one, other) for one, other in zip(*tensors, strict=True))
