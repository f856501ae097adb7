"""Normalising flows: base noise and invertible transforms.

The density is exact; a flow draws as well as it scores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.grey_levels import Shades
from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program import Program
from ppl_dgm.program.inspection import Examination
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.transforms import Bijection, FlowDistribution
from ppl_dgm.transforms.bijection import call_and_log_det, inverse_and_log_det, pull, push
from ppl_dgm.transforms.distribution import Held
from ppl_dgm.transforms.linear import starting

__all__ = ["Flow", "FlowModel", "standard_normal"]

NUM_START = 2000  # data that activations are normalised with at the start, at most


class Flow(Shades, Program):
    r"""Normalising flow, with an exact density.

    $x = t_n(\dots t_1(z))$ with noise $z \sim p_z$ (Rezende and Mohamed 2015; Papamakarios et al.
    2021).

    $$\log p(x) = \log p_z(z) - \sum_i \log \left|\det \frac{\partial t_i}{\partial
    z_{i-1}}\right|$$

    is exact. Transforms are those of `ppl_dgm.transforms`, Pyro's and torch's; modules among them
    are learned. Transforms with a context make a conditional density, log p(x | context): data are
    then `(x, context)`, `[N, D]` and `[N, num_context]`, and `sample(n, context=c)` draws `[n,
    len(c), D]`, or `[n, D]` for one context.

    The first data that the flow sees start its `ActNorm`s, so that data of any location and scale
    can be fitted.

    Args:
        base: the distribution of z, batch `[]` and event `[D]`: Pyro's or torch's, or a module that
            returns one.
        transforms: from noise to data.

    Raises:
        TypeError: a base that is no distribution.
        ValueError: a base that is discrete or has a batch shape, transforms whose shapes do not
            chain or that have no inverse; when run, data of another shape, no context where one is
            needed, or one of another length.

    Example:
        >>> from ppl_dgm.transforms import ActNorm, Coupling
        >>> noise = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> flow = Flow(noise, [Coupling(3), Coupling(3, flipped=True), ActNorm((3,))])
        >>> flow.density, flow.sample(4).shape, flow.latents(flow.sample(4)).shape
        ('exact', torch.Size([4, 3]), torch.Size([4, 3]))
    """

    @checked
    def __init__(self, base: Distribution | nn.Module, transforms: Sequence[Any]) -> None:
        super().__init__(FlowModel(base, transforms))

    @property
    def vectors(self) -> bool:  # type: ignore[override]
        """Whether an event is a vector."""
        return len(self.parts.event_shape) == 1

    @property
    def parts(self) -> "FlowModel":
        """The module behind the model: `base` and `transforms`."""
        return self.model.fn  # type: ignore[return-value]

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """Return the density of data, event `[D]`.

        It is p(x), or p(x | context) of contexts `[..., num_context]`.
        """
        return self.parts.distribution(context)

    @checked
    def latents(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map data `[N, D]` to noise `[N, D]`, differentiably.

        Raises:
            ValueError: data of another shape, no context where one is needed, or one of another
                length.
        """
        x, context = self._given(x, context)
        self.parts.check(x, context)
        with evaluating(self):
            return pull(self.parts.transforms(context), x, len(self.parts.event_shape))[0]

    @checked
    def from_latents(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise `[N, D]` to data `[N, D]`, differentiably.

        See `latents` for the errors.
        """
        z, context = self._given(z, context)
        self.parts.check(z, context, "noise", self.parts.noise_shape)
        with evaluating(self):
            return push(self.parts.transforms(context), z, len(self.parts.noise_shape))[0]

    @checked
    def start(self, x: Tensor, context: Tensor | None = None) -> "Flow":
        """Start the `ActNorm`s from data `[N, D]`.

        Those that have already started are left as they are. Returns the flow itself.

        Happens by itself at the first run on data: a fit, an evidence, `initialise`.

        Raises:
            ValueError: data of another shape, no context where one is needed, or one of another
                length.
        """
        x, context = self._given(x, context)
        with starting(self) as norms, evaluating(self), torch.no_grad():
            if norms:
                self.parts.check(x, context)
                check_finite(x)
                few = slice(None, None, max(1, len(x) // NUM_START))
                given = None if context is None else context[few]
                pull(self.parts.transforms(given), x[few], len(self.parts.event_shape))
        return self

    def _given(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Data or noise, and the context, in the parameters' dtype."""
        (x, *rest), _ = self.adapt((x,) if context is None else (x, context), {})
        return x, rest[0] if rest else None

    def examine_at(self, args: tuple, kwargs: Mapping[str, Any], **how: Any) -> Examination:
        """Check the program at data, and start it.

        It starts from the data if they are the first.
        """
        if args or "x" in kwargs:
            self.start(*args, **kwargs)
        return super().examine_at(args, kwargs, **how)


class FlowModel(nn.Module):
    """z ~ base, x = transforms(z)."""

    def __init__(self, base: Distribution | nn.Module, transforms: Sequence[Any]) -> None:
        super().__init__()
        self.base = base if isinstance(base, nn.Module) else Held(base)
        self.transforms = Held(tuple(transforms))
        self.takes_context = any(map(takes_context, transforms))
        self.noise_shape = checked_base(self.base())
        self.event_shape = check_chain(self.base(), transforms)

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """p(x), or p(x | context)."""
        return FlowDistribution(self.base(), self.transforms(context))

    def check(
        self,
        x: Tensor,
        context: Tensor | None,
        name: str = "data",
        event_shape: torch.Size | None = None,
    ) -> None:
        """Refuse data or noise and contexts of other shapes."""
        shape = self.event_shape if event_shape is None else event_shape
        if not isinstance(x, Tensor) or x.shape[1:] != shape or x.dim() != 1 + len(shape):
            given = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(f"expected {name} {['N', *shape]}, got {given}")
        self.check_context(context, len(x))

    def check_context(self, context: Tensor | None, size: int) -> None:
        """Refuse an unexpected context, or one of wrong length."""
        if context is not None and not self.takes_context:
            raise ValueError(
                "the flow was made without a context but was given one; make it with num_context"
            )
        if context is not None and context.dim() < 2:
            raise ValueError(
                f"expected contexts [N, num_context], got shape {list(context.shape)}; "
                "one context for all is context.expand(N, -1), one for draws context.unsqueeze(0)"
            )
        if context is not None and not len(context):
            raise ValueError(f"expected a context at least, got shape {list(context.shape)}")
        if context is not None and len(context) != size:
            raise ValueError(f"expected a context for each of {size} data, got {len(context)}")

    def num_data(self, x: Tensor | None, context: Tensor | None) -> int:
        """How many data are scored or drawn.

        Raises:
            ValueError: data of another shape, contexts of another length.
        """
        if x is None:
            size = 1 if context is None else len(context)
            self.check_context(context, size)
            return size
        self.check(x, context)
        return len(x)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw data.

        One datum is drawn for each context.
        """
        with pyro.plate("data", self.num_data(x, context), dim=-1):
            return pyro.sample("x", self.distribution(context), obs=x)


def check_finite(x: Tensor) -> None:
    """Refuse data that nothing can start from."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"{int((~torch.isfinite(x)).sum())} of the data's numbers are NaN or infinite; "
            "expected finite data. Remove or impute them"
        )


def takes_context(transform: Any) -> bool:
    """Whether a transform needs a context."""
    if isinstance(transform, Bijection):
        return transform.num_context > 0
    return isinstance(transform, ConditionalTransform)


def checked_base(base: Any) -> torch.Size:
    """The shape of an event of noise.

    Raises:
        TypeError: what is no distribution.
        ValueError: a batch shape, events that are numbers, discrete events.
    """
    if not isinstance(base, Distribution):
        raise TypeError(
            f"base is a {type(base).__name__}; expected a distribution, e.g. "
            "Normal(torch.zeros(2), 1.0).to_event(1)"
        )
    if base.batch_shape or not base.event_shape:
        raise ValueError(
            f"the base has batch shape {list(base.batch_shape)} and event shape "
            f"{list(base.event_shape)}; expected [] and [D]: write base.to_event(1)"
        )
    if base.support is not None and base.support.is_discrete:
        raise ValueError(
            "the base is discrete; expected a density of real numbers, which transforms change. "
            "For data of whole numbers, see Dequantised"
        )
    return base.event_shape


@torch.no_grad()
def check_chain(base: Any, transforms: Sequence[Any]) -> torch.Size:
    """Check the chain of transforms by a draw of noise.

    Returns the shape of a datum.

    Raises:
        ValueError: transforms whose shapes do not chain, or that have no inverse.
    """
    with unmoved_generators():
        value = base.sample()
    for place, transform in enumerate(transforms):
        expected = getattr(transform, "event_shape", value.shape)
        if expected != value.shape:
            raise ValueError(
                f"transform {place}, {type(transform).__name__}, maps events {list(expected)} but "
                f"is given events {list(value.shape)}; make the shapes chain"
            )
        if not takes_context(transform):
            value = _tried(place, transform, value)
        elif isinstance(transform, Bijection):
            value = value.new_zeros(transform.forward_shape(value.shape))
    return value.shape


def _tried(place: int, transform: Any, value: Tensor) -> Tensor:
    """Apply a transform to one event, as a test.

    Returns the image of the event. It is also carried back, unless the transform is a bijection,
    which has an inverse.
    """
    try:
        image, log_det = call_and_log_det(transform, value)
        if not isinstance(transform, Bijection):
            inverse_and_log_det(transform, image.clone())
    except ValueError as error:  # no inverse
        raise ValueError(f"transform {place}: {error}") from error
    except (AssertionError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"transform {place}, {type(transform).__name__}, cannot map events "
            f"{list(value.shape)}: {error}"
        ) from error
    expected = image.shape[: image.dim() - transform.codomain.event_dim]
    if log_det.shape != expected:  # as of torch's StackTransform of elementwise parts
        raise ValueError(
            f"transform {place}, {type(transform).__name__}, has log-determinants of shape "
            f"{list(log_det.shape)} for an event {list(value.shape)}; expected {list(expected)}. "
            "torch's CatTransform joins elementwise transforms along a dimension"
        )
    return image


def standard_normal(num_dims: int) -> Distribution:
    """N(0, I) of vectors `[D]`.

    Raises:
        ValueError: a size below one.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims is {num_dims}; expected at least 1")
    return dist.Normal(torch.zeros(num_dims), 1.0).to_event(1)
