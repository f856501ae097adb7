"""Bijections that return image and log-determinant together.

They are Pyro transforms, with or without a context.

Pyro's transforms score from a cache of their last call, which goes stale when parameters change,
and compute the nets of a step twice without it. A bijection has no cache: each direction is one
pass that returns both numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import Transform, constraints

__all__ = [
    "Bijection",
    "Conditioned",
    "Images",
    "Inverse",
    "call_and_log_det",
    "condition_all",
    "forget",
    "inverse_and_log_det",
    "is_foreign",
    "may_fold",
    "modules_of",
    "parts_of",
    "pull",
    "push",
    "sum_last",
]

Images = tuple[Tensor, Tensor]  # values `[..., *event]` and log |det| in nats `[...]`


class Bijection(TransformModule, ConditionalTransform, ABC):
    """Invertible map of events with parameters.

    It may take a context too.

    To add one, write `call_and_log_det` and `inverse_and_log_det`; everything that Pyro and torch
    ask of a transform derives from these. A map with `num_context` above zero needs a context
    `[..., num_context]` in every call, and is given to distributions as
    `bijection.condition(context)`; one without ignores the context of the others.

    Args:
        event_shape: of what is mapped.
        num_context: size of the context vector; 0 for none.

    Raises:
        ValueError: sizes below one, a negative context.
    """

    bijective = True
    foldable = False  # whether some parameters make a map that has no inverse

    def __init__(self, event_shape: Sequence[int], num_context: int = 0) -> None:
        super().__init__()
        if min([*event_shape, 1]) < 1 or num_context < 0:
            raise ValueError(
                f"expected sizes of at least 1 and a context of at least 0, got "
                f"{list(event_shape)} and {num_context}"
            )
        self.event_shape = torch.Size(event_shape)
        self.num_context = num_context

    @abstractmethod
    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """Compute y = f(x) and log |det dy/dx|.

        y is `[..., *event]`, the log-determinant `[...]`, in nats.
        """

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """Compute x with f(x) = y, and log |det dx/dy|.

        x is `[..., *event]`, the log-determinant `[...]`, in nats.
        """

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """Real events."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """Real events."""
        return self.domain

    def condition(self, context: Tensor) -> Transform:
        """The transform at a context `[..., num_context]`.

        Raises:
            ValueError: a context of another length.
        """
        if self.num_context == 0:
            return self
        return Conditioned(self, self.checked(context))

    def checked(self, context: Tensor | None) -> Any:
        """Check the context and return it if it is used.

        The result is None if this map uses none. Whole numbers and flags, as of
        `torch.nn.functional.one_hot`, become numbers of the parameters' dtype.

        Raises:
            ValueError: no context where one is needed, or one of another length.
        """
        if self.num_context == 0:
            return None
        if context is None or context.dim() < 1 or context.shape[-1] != self.num_context:
            given = "none" if context is None else f"shape {list(context.shape)}"
            raise ValueError(
                f"{type(self).__name__} was made with num_context={self.num_context} and needs a "
                f"context [..., {self.num_context}], got {given}"
            )
        if context.is_floating_point():
            return context
        return context.to(next(self.parameters()).dtype)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det dy/dx| in nats `[...]`."""
        return self.call_and_log_det(x)[1]

    def with_cache(self, cache_size: int = 1) -> "Bijection":
        """Itself: there is no cache to go stale."""
        return self


class Conditioned(Transform):
    """A bijection at a context."""

    bijective = True

    def __init__(self, bijection: Bijection, context: Tensor) -> None:
        super().__init__()
        self.bijection, self.context = bijection, context

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """That of the bijection."""
        return self.bijection.domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """That of the bijection."""
        return self.bijection.codomain

    def call_and_log_det(self, x: Tensor) -> Images:
        """y = f(x) and log |det dy/dx|."""
        return self.bijection.call_and_log_det(x, self.context)

    def inverse_and_log_det(self, y: Tensor) -> Images:
        """x with f(x) = y, and log |det dx/dy|."""
        return self.bijection.inverse_and_log_det(y, self.context)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det dy/dx| in nats `[...]`."""
        return self.call_and_log_det(x)[1]

    def with_cache(self, cache_size: int = 1) -> "Conditioned":
        """Itself: there is no cache to go stale."""
        return self

    def forward_shape(self, shape: Any) -> Any:
        """Shape of the image."""
        return self.bijection.forward_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        """Shape of what has an image of this shape."""
        return self.bijection.inverse_shape(shape)


class Inverse(Bijection):
    """A bijection with its directions exchanged, its parameters still learned.

    What is fast in one direction is then fast in the other: `Inverse(MaskedAutoregressive(...))`
    scores data in one pass (a masked autoregressive flow), `MaskedAutoregressive(...)` draws in one
    (an inverse autoregressive flow).

    Example:
        >>> from ppl_dgm.transforms import ActNorm
        >>> x = torch.randn(5, 3)
        >>> norm = ActNorm((3,))
        >>> torch.allclose(Inverse(norm)(norm(x)), x)
        True
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(bijection.forward_shape(bijection.event_shape), bijection.num_context)
        self.bijection = bijection

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The images of the bijection."""
        return self.bijection.codomain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """What the bijection maps."""
        return self.bijection.domain

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Images:
        """The bijection's inverse."""
        return self.bijection.inverse_and_log_det(x, context)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> Images:
        """The bijection itself."""
        return self.bijection.call_and_log_det(y, context)

    def forward_shape(self, shape: Any) -> Any:
        """Shape of the image."""
        return self.bijection.inverse_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        """Shape of what has an image of this shape."""
        return self.bijection.forward_shape(shape)


def condition_all(transforms: Iterable[Any], context: Tensor | None) -> list[Any]:
    """Condition transforms on a context.

    Those that take none stay as they are.

    Raises:
        ValueError: no context where one is needed, or one of another length.
    """
    return [_conditioned(transform, context) for transform in transforms]


def _conditioned(transform: Any, context: Tensor | None) -> Any:
    if isinstance(transform, Bijection):
        used = transform.checked(context)
        return transform if used is None else Conditioned(transform, used)
    if not isinstance(transform, ConditionalTransform):
        return transform
    if context is None:
        raise ValueError(f"{type(transform).__name__} needs a context, got none; pass context=...")
    return transform.condition(context)


def call_and_log_det(transform: Any, x: Tensor) -> Images:
    """Apply any transform and compute its log-determinant.

    The result is y = t(x) and log |det dy/dx| `[...]`, at the present parameters.

    Raises:
        ValueError: for a transform without an inverse, as some of Pyro's.
    """
    if hasattr(transform, "call_and_log_det"):
        return transform.call_and_log_det(x)
    forget(transform)
    with naming_of_missing(transform):
        y = transform(x)
        log_det = transform.log_abs_det_jacobian(x, y)
    forget(transform)
    return y, log_det


def inverse_and_log_det(transform: Any, y: Tensor) -> Images:
    """Invert any transform and compute the inverse's log-determinant.

    The result is x = t^-1(y) and log |det dx/dy| `[...]`, at the present parameters.

    Raises:
        ValueError: for a transform without an inverse, as some of Pyro's.
    """
    if hasattr(transform, "inverse_and_log_det"):
        return transform.inverse_and_log_det(y)
    forget(transform)
    with naming_of_missing(transform):
        x = transform.inv(y)
        log_det = -transform.log_abs_det_jacobian(x, y)
    forget(transform)
    return x, log_det


@contextmanager
def naming_of_missing(transform: Any) -> Iterator[None]:
    """Name what lacks an inverse: Pyro's look in a cache."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{type(transform).__name__} has no inverse{f': {error}' if str(error) else ''}. "
            "Planar, Radial, Sylvester and MaskedAutoregressive of ppl_dgm.transforms have one"
        ) from error


def push(transforms: Iterable[Any], x: Tensor, event_dim: int) -> Images:
    """Map events through transforms and sum their log-determinants.

    Events have `event_dim` dimensions. The result is the image and the joint log |det| `[...]`.
    """
    total: Any = 0.0
    for transform in transforms:
        spare = event_dim - transform.domain.event_dim
        x, log_det = call_and_log_det(transform, x)
        total = total + sum_last(log_det, spare)
        event_dim = spare + transform.codomain.event_dim
    return x, total


def pull(transforms: Sequence[Any], y: Tensor, event_dim: int) -> Images:
    """Map events back through transforms and sum their log-determinants.

    Events have `event_dim` dimensions. The result is the origin and the joint log |det dx/dy|
    `[...]`.
    """
    total: Any = 0.0
    for transform in reversed(transforms):
        spare = event_dim - transform.codomain.event_dim
        y, log_det = inverse_and_log_det(transform, y)
        total = total + sum_last(log_det, spare)
        event_dim = spare + transform.domain.event_dim
    return y, total


def sum_last(value: Tensor, num_dims: int) -> Tensor:
    """The sum over so many of the last dimensions."""
    return value.flatten(-num_dims).sum(-1) if num_dims > 0 else value


def forget(transform: Any) -> None:
    """Clear the cached values of a transform.

    They are from its last call, with old parameters, and cannot be copied.
    """
    for name in [name for name in vars(transform) if name.startswith("_cached_")]:
        setattr(transform, name, (None, None) if name == "_cached_x_y" else None)
    for part in parts_of(transform):
        forget(part)


def may_fold(transforms: Iterable[Any]) -> bool:
    """Whether the present parameters may leave no inverse."""
    modules = [getattr(transform, "bijection", transform) for transform in transforms]
    return any(
        getattr(part, "foldable", False)
        for module in modules
        if isinstance(module, nn.Module)
        for part in module.modules()
    )


def is_foreign(transform: Any) -> bool:
    """Whether others wrote the transform or a part.

    Torch's own are exact.
    """
    if parts := parts_of(transform):
        return any(map(is_foreign, parts))
    if isinstance(transform, (Bijection, Conditioned)):
        return False
    return not all(type(t).__module__.startswith("torch.") for t in (transform, transform.inv))


def modules_of(transform: Any) -> list[nn.Module]:
    """List the modules that a transform is composed of.

    A transform that is a module is the only one.

    Raises:
        ValueError: for the inverse of a module.
    """
    if isinstance(transform, nn.Module):
        return [transform]
    if not parts_of(transform) and isinstance(transform.inv, nn.Module):
        raise ValueError(
            f"the parameters of {transform} can be neither learned nor copied; expected a "
            f"transform that is a module, not its .inv: write transforms.Inverse(t), or a "
            "TransformModule with _call and _inverse exchanged"
        )
    return [module for part in parts_of(transform) for module in modules_of(part)]


def parts_of(transform: Any) -> list[Any]:
    """List the parts of a composed or independent transform."""
    base = [transform.base_transform] if hasattr(transform, "base_transform") else []
    return [*getattr(transform, "parts", ()), *base]
