r"""Dequantisation: flows on whole numbers.

They are scored by lower bounds of a discrete likelihood.

A density of real numbers has no upper limit at whole ones: a flow fitted to levels as they are
piles up on them and its log density says nothing. The probability of a level is the integral of the
density over its cell,

$$P(x) = \int_{[0, 1)^D} p(x + u)\, du = E_{q(u \mid x)} \frac{p(x + u)}{q(u \mid x)},$$

which is the evidence of a program with y as latent: y ~ flow, x = floor(y), guide y = x + u.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import SigmoidTransform

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import check_levels, scaled_levels
from ppl_dgm.distributions import Floored, WithinCell
from ppl_dgm.families.flows.flow import Flow, FlowModel
from ppl_dgm.families.flows.images import check_sides, checked_length
from ppl_dgm.nn.conditioned import BesideImage
from ppl_dgm.nn.mlp import Activation, ImageShape
from ppl_dgm.program import Program
from ppl_dgm.program.inspection import Examination
from ppl_dgm.transforms import (
    Bijection,
    Chain,
    Coupling,
    Elementwise,
    FlowDistribution,
    ImageCoupling,
    MultiScale,
    checkerboard,
)
from ppl_dgm.transforms.distribution import Held

__all__ = ["Dequantised", "UniformNoise", "VariationalNoise"]


class Dequantised(Program):
    r"""Flow on discrete levels by dequantisation.

    The levels are 0, ..., levels - 1 (Theis, van den Oord and Bethge 2016).

    $\log P(x) \ge E_q[\log p(x + u) - \log q(u \mid x)]$, uniform q by default, or learned:
    variational dequantisation (Ho et al. 2019, Flow++, section 3.1). The flow is fitted by `ELBO()`
    or, with K draws of the noise, `IWELBO(K)` (Hoogeboom, Cohen and Tomczak 2020); `evidence.ELBO`
    and `evidence.IWELBO` give lower bounds of log P(x), in nats, `ImportanceSampling` estimates it.

    Draws are whole numbers; where the flow has mass below 0 and above levels, draws lie there too.
    A flow that ends with `SigmoidTransform()` and `AffineTransform(0.0, levels)` has none.

    Args:
        flow: the density p of real vectors. It starts from the first data.
        levels: number of levels.
        noise: q: a module from x (and the flow's context) to a distribution on the unit cube, event
            `[D]`, e.g. `VariationalNoise`; uniform by default.

    Raises:
        TypeError: what is no flow.
        ValueError: fewer than two levels; when run, data that are no levels, or of another shape.

    Example:
        >>> from ppl_dgm import evidence
        >>> from ppl_dgm.families import RealNVP
        >>> program, x = Dequantised(RealNVP(3), levels=4), torch.tensor([[0.0, 3.0, 1.0]])
        >>> evidence.ELBO(num_particles=8)(program, x).bound, program.sample(5).shape
        ('lower', torch.Size([5, 3]))
    """

    vectors = True

    @checked
    def __init__(self, flow: Flow, levels: int, noise: nn.Module | None = None) -> None:
        if not isinstance(flow, Flow):
            raise TypeError(f"flow is a {type(flow).__name__}; expected a Flow, e.g. RealNVP(D)")
        check_levels(levels)
        noise = noise or UniformNoise()
        super().__init__(DequantisedModel(flow.parts), DequantisingGuide(flow.parts, noise))
        self._flow, self.levels = (flow,), levels  # in a tuple: its parameters are the model's

    @property
    def flow(self) -> Flow:
        """The flow of real vectors."""
        return self._flow[0]

    def examine_at(self, args: tuple, kwargs: Mapping[str, Any], **how: Any) -> Examination:
        """Check the program at data, and start its flow.

        The flow starts from the data if they are the first.
        """
        if args or "x" in kwargs:
            self.start(*args, **kwargs)
        return super().examine_at(args, kwargs, **how)

    def start(self, x: Tensor, context: Tensor | None = None) -> "Dequantised":
        """Start the flow from levels `[N, D]`.

        Uniform noise is added to them; see `Flow.start`.

        Raises:
            ValueError: data that are no levels, or of another shape.
        """
        self.flow.parts.check(x, context)
        if not bool(((x % 1 == 0) & (x >= 0) & (x < self.levels)).all()):
            raise ValueError(
                f"expected data among the levels 0, ..., {self.levels - 1}, got numbers from "
                f"{x.min().item():g} to {x.max().item():g}; scale and round them"
            )
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=self.dtype)
        self.flow.start(x + noise.to(x.device), context)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())


class DequantisedModel(nn.Module):
    """y ~ flow, x = floor(y)."""

    def __init__(self, flow: FlowModel) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Score levels `[data, D]`, or draw data.

        One datum is drawn for each context.
        """
        size = self.flow.num_data(x, context)
        with pyro.plate("data", size, dim=-1):
            y = pyro.sample("y", self.flow.distribution(context))
            return pyro.sample("x", Floored(y), obs=x)


class DequantisingGuide(nn.Module):
    """y = x + u, u ~ noise(x)."""

    def __init__(self, flow: FlowModel, noise: nn.Module) -> None:
        super().__init__()
        self.noise, self._flow = noise, (flow,)  # in a tuple: its parameters are the model's

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Draw y of levels `[data, D]`."""
        law = self.noise(x) if context is None else self.noise(x, context)
        with pyro.plate("data", self._flow[0].num_data(x, context), dim=-1):
            return pyro.sample("y", WithinCell(x, law))


class UniformNoise(nn.Module):
    """u uniform on the unit cube, whatever x.

    Example:
        >>> UniformNoise()(torch.zeros(5, 3)).log_prob(torch.full((5, 3), 0.5))
        tensor([0., 0., 0., 0., 0.])
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """Uniform distributions, batch and event as data `[..., D]`."""
        return dist.Uniform(torch.zeros_like(x), torch.ones_like(x)).to_event(1)


class VariationalNoise(nn.Module):
    r"""Learned dequantisation noise, made by couplings.

    $u = \sigma(t_n(\dots t_1(e; x) \dots; x))$ with logistic noise e; the nets of the couplings see
    x (Ho et al. 2019, Flow++, section 3.1).

    It starts near the uniform distribution, which is $\sigma(e)$.

    Args:
        size: number D of dimensions, or (channels, height, width) of flattened images.
        levels: number of levels, by which the nets' inputs are scaled.
        length: number of couplings.
        hidden: sizes, or channels, of the nets' hidden layers.
        activation: makes the nets' activation.

    Raises:
        ValueError: sizes or lengths below one, fewer than two levels.

    Example:
        >>> noise = VariationalNoise((1, 4, 4), levels=17, length=2, hidden=[8])
        >>> noise(torch.zeros(5, 16)).sample().shape
        torch.Size([5, 16])
    """

    @checked
    def __init__(
        self,
        size: int | ImageShape,
        levels: int,
        length: int = 4,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.levels = check_levels(levels)
        couple = vector_couplings if isinstance(size, int) else image_couplings
        num_dims = size if isinstance(size, int) else math.prod(size)
        if num_dims < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        self.base = Held(dist.Logistic(torch.zeros(num_dims), torch.ones(num_dims)).to_event(1))
        steps = couple(size, checked_length(length), hidden, activation)  # type: ignore[arg-type]
        self.transforms = Held(steps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> FlowDistribution:
        """q(u | x) of levels `[..., D]`, for any context."""
        steps = self.transforms(scaled_levels(x, self.levels))
        return FlowDistribution(self.base(), [*steps, SigmoidTransform()])


def vector_couplings(
    size: int, length: int, hidden: Sequence[int], activation: Activation
) -> list[Bijection]:
    """Make couplings of vectors that depend on the levels.

    They are an affine map and, of more than one dimension, affine couplings.
    """
    steps: list[Bijection] = [Elementwise((size,), None, size, hidden)]
    if size == 1:
        return steps
    return steps + [
        Coupling(size, None, None, step % 2 == 1, hidden, size, activation)
        for step in range(length)
    ]


def image_couplings(
    image_shape: ImageShape, length: int, hidden: Sequence[int], activation: Activation
) -> list[Bijection]:
    """Checkerboard couplings whose nets see the levels beside the noise."""
    check_sides(image_shape, 1, 0)

    def coupling(step: int) -> Bijection:
        net = BesideImage(image_shape, hidden, 2 * image_shape[0], activation)
        mask, size = checkerboard(image_shape, step % 2), math.prod(image_shape)
        return ImageCoupling(image_shape, mask, num_context=size, net=net)

    return [MultiScale([Chain([coupling(step) for step in range(length)])])]
