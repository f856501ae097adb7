"""Continuous latents of a program as one real vector.

Markov chains, Laplace and bridge sampling work on this vector.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

import ppl_dgm.sampling.positive_definite  # noqa: F401 - registers its transform
from ppl_dgm.program import Bound, Latent
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.particles import Values
from ppl_dgm.program.supports import innermost
from ppl_dgm.sampling.simplex import precise

__all__ = [
    "ANGLES",
    "ONE_TURN",
    "Slot",
    "SplitDensity",
    "Unconstrained",
    "check_continuous",
    "given_points",
    "rule_out_overflow",
]

ANGLES = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
ONE_TURN: constraints.Constraint = constraints.interval(-math.pi, math.pi)
UNRESOLVED = 0.5  # distance in unconstrained space that a value does not tell
NUM_PROBES = 64  # prior draws on which supports are checked


class Slot(NamedTuple):
    """Place of one latent in the flat vector.

    It has the transform, the unconstrained shape without data, and the entries.
    """

    latent: Latent
    transform: Transform
    shape: torch.Size
    start: int
    stop: int


class SplitDensity(NamedTuple):
    """Log prior and log likelihood, each `[chains, *batch]`.

    The prior includes the Jacobian.
    """

    prior: Tensor
    likelihood: Tensor

    @property
    def total(self) -> Tensor:
        """log joint density in unconstrained coordinates."""
        return self.prior + self.likelihood


class Unconstrained:
    r"""Log densities of a program as functions of unconstrained vectors.

    The program is bound to its data.

    A point is `[chains, *batch, dim]`: `batch` is `[data]` where each datum has its own latents and
    evidence, `[]` where the data set has one. Each latent goes through Pyro's `biject_to` of its
    support, $\log p(y) = \log p(v(y)) + \log |\mathrm{d}v / \mathrm{d}y|$, so that integrals over
    the vector are those over the latents. Densities are differentiable in the point and in nats.

    Args:
        bound: the program with its data.

    Raises:
        ValueError: for discrete latents that are not summed out, no latents, or a support that
            depends on others or has no transform from all real numbers.
    """

    def __init__(self, bound: Bound) -> None:
        check_continuous(bound)
        self.bound = bound.proper()
        with torch.no_grad():
            values = bound.draw_prior(NUM_PROBES).values
            self.slots = self._lay_out(values)
            example = self.unconstrain(values)
        self.dim: int = example.shape[-1]
        self.batch: torch.Size = example.shape[1:-1]
        self.dtype, self.device = example.dtype, example.device

    def _lay_out(self, values: Values) -> tuple[Slot, ...]:
        slots: list[Slot] = []
        for latent in bounded_angles(self.bound):
            check_support(latent, values[latent.name])
            transform = precise(transform_to(latent))
            shape = self._data_first(latent, inverse(transform, values[latent.name])).shape[
                1 + self._local :
            ]
            start = slots[-1].stop if slots else 0
            slots.append(Slot(latent, transform, shape, start, start + shape.numel()))
        return tuple(slots)

    @property
    def _local(self) -> int:
        return int(self.bound.structure.per_datum)

    def _data_first(self, latent: Latent, value: Tensor) -> Tensor:
        """Move the data dimension next to the chains.

        `[chains, ..., data, *event]` becomes `[chains, data, ..., *event]`, where data have latents
        of their own.
        """
        return value.movedim(latent.batch_dim, 1) if self._local else value

    def rebind(self, bound: Bound) -> "Unconstrained":
        """Apply the same view to another part of the data.

        Nothing is drawn from its prior again.
        """
        view = copy.copy(self)
        view.bound = bound.proper()
        view.batch = torch.Size([bound.num_data or 1]) if self._local else torch.Size([])
        return view

    def origin(self, num_chains: int) -> Tensor:
        """Points with all coordinates zero: `[num_chains, *batch, dim]`."""
        return torch.zeros(
            (num_chains, *self.batch, self.dim), dtype=self.dtype, device=self.device
        )

    def unconstrain(self, values: Values) -> Tensor:
        """Convert latent values `[chains, *shape]` to points `[chains, *batch, dim]`.

        Values are given by name.
        """
        parts = []
        for slot in self.slots:
            y = self._data_first(slot.latent, inverse(slot.transform, values[slot.latent.name]))
            parts.append(y.reshape((*y.shape[: 1 + self._local], -1)))
        return torch.cat(parts, -1)

    def constrain(self, point: Tensor) -> Values:
        """Convert points `[chains, *batch, dim]` to latent values `[chains, *shape]`.

        Values are returned by name.
        """
        return self._transformed(point)[0]

    def at_edge(self, point: Tensor) -> Tensor:
        """Whether points `[chains, *batch, dim]` lie beyond what floats resolve.

        Their values are so near an edge of the support that they do not tell the point: densities
        beyond it are cut off.
        """
        with torch.no_grad():
            back = self.unconstrain(self.constrain(point))
        return ((back - point).abs() > UNRESOLVED).any(-1)

    def _transformed(self, point: Tensor) -> tuple[Values, Tensor]:
        """Latent values and log |Jacobian| `[chains, *batch]` of points."""
        values, jacobian = {}, point.new_zeros(point.shape[:-1])
        for slot in self.slots:
            y = self._slice(point, slot)
            value = slot.transform(y)
            log_det = slot.transform.log_abs_det_jacobian(y, value)
            log_det = log_det.movedim(slot.latent.batch_dim, 1) if self._local else log_det
            jacobian = jacobian + log_det.reshape((*point.shape[:-1], -1)).sum(-1)
            values[slot.latent.name] = value
        return values, jacobian

    def _slice(self, point: Tensor, slot: Slot) -> Tensor:
        """Extract the entries of one latent from points.

        They get the shape that its site has before the transform.
        """
        y = point[..., slot.start : slot.stop].reshape(point.shape[:-1] + slot.shape)
        return y.movedim(1, slot.latent.batch_dim) if self._local else y

    def split(self, point: Tensor) -> SplitDensity:
        """Evaluate log prior and log likelihood at points.

        Points are `[chains, *batch, dim]`. The prior includes the Jacobian.
        """
        return SplitDensity(*map(rule_out_overflow, self.raw_split(point)))

    def raw_split(self, point: Tensor) -> SplitDensity:
        """Evaluate `split` without replacing values that overflow.

        There NaN and plus infinity remain. Gradients of the result need no values.
        """
        values, jacobian = self._transformed(point)
        joint = self.bound.log_joint(values)
        return SplitDensity(joint.prior + jacobian, joint.likelihood)

    def log_joint(self, point: Tensor) -> Tensor:
        """log p(x, y) at points `[chains, *batch, dim]`: `[chains, *batch]`."""
        return self.split(point).total

    def sample_prior(self, num_chains: int) -> Tensor:
        """Draw points from the prior: `[num_chains, *batch, dim]`."""
        return self.unconstrain(self.bound.draw_prior(num_chains).values)

    def sample_guide(self, num_chains: int) -> tuple[Tensor, Tensor]:
        """Draw points from the guide with their log density.

        Without a guide the prior is used. Points are `[chains, *batch, dim]`, densities `[chains,
        *batch]`.
        """
        values, log_q = self.bound.draw(num_chains)[:2]
        point = self.unconstrain(values)
        return point, log_q + self._transformed(point)[1]

    def log_guide(self, point: Tensor) -> Tensor:
        """log q(y | x) of points `[chains, *batch, dim]`.

        Raises:
            ValueError: if the guide's density at a given point is not to be had (auxiliary
                variables that are not the unconstrained latents).
        """
        values, jacobian = self._transformed(point)
        return self.bound.log_guide(values | self._auxiliary(point)) + jacobian

    def _auxiliary(self, point: Tensor) -> Values:
        """Find the guide's auxiliary variables at a point.

        They must be the unconstrained latents.
        """
        if not self._auxiliary_names:
            return {}
        if not self._auxiliary_known:
            raise ValueError(
                f"the guide's auxiliary variables {list(self._auxiliary_names)} are not its "
                "unconstrained latents, so that its density at a given point is unknown; use a "
                "guide that samples the model's latents, AutoNormal or AutoMultivariateNormal"
            )
        return self._as_auxiliary(point)

    @property
    def _auxiliary_names(self) -> tuple[str, ...]:
        return tuple(latent.name for latent in self.bound.structure.latents if latent.auxiliary)

    def _as_auxiliary(self, point: Tensor) -> Values:
        """Arrange a point like the auxiliary variables of autoguides.

        Those of Pyro hold unconstrained latents by site, or all in one vector.
        """
        by_site = {
            f"{slot.latent.name}_unconstrained": self._slice(point, slot) for slot in self.slots
        }
        return {name: by_site.get(name, point) for name in self._auxiliary_names}

    @cached_property
    def _auxiliary_known(self) -> bool:
        """Whether draws of the guide bear that out."""
        with torch.no_grad():
            values = self.bound.draw(2).values
            expected = self._as_auxiliary(self.unconstrain(values))
        return all(
            values[name].shape == expected[name].shape
            and torch.allclose(values[name], expected[name], 1e-3, 1e-3)
            for name in self._auxiliary_names
        )


@biject_to.register(constraints.MixtureSameFamilyConstraint)  # type: ignore[attr-defined]
def mixture_transform(
    support: constraints.MixtureSameFamilyConstraint,  # type: ignore[name-defined]
) -> Transform:
    """Find the transform to the support of a mixture.

    This is the support that all components have.

    Raises:
        ValueError: for components on bounds that are tensors, which may differ.
    """
    innermost: Any = support.base_constraint
    while hasattr(innermost, "base_constraint"):
        innermost = innermost.base_constraint
    bounds = [
        name for name, value in vars(innermost).items() if isinstance(value, Tensor) and value.dim()
    ]
    if bounds:
        raise ValueError(
            f"each component of a mixture that is a latent has a {' and '.join(bounds)} of its "
            "own, so that no one transform unconstrains it; mix standardised components, e.g. "
            "Beta in place of Uniform, and scale the draw"
        )
    return biject_to(support.base_constraint)


def transform_to(latent: Latent) -> Transform:
    """Find the transform to the support of a latent."""
    try:
        return biject_to(latent.support)
    except NotImplementedError as error:
        raise ValueError(
            f"the support {latent.support} of latent {latent.name!r} has no transform from all "
            "real numbers; use PriorSampling or ImportanceSampling, or draw real numbers and map "
            "them with pyro.deterministic"
        ) from error


def bounded_angles(bound: Bound) -> Iterator[Latent]:
    """Yield the model's latents, with angles limited to one turn.

    Pyro gives angles all real numbers as support, over which their density has no finite integral.
    """
    with undisturbed(bound.model):
        sites = bound.model_trace().nodes
    for latent in bound.structure.model_latents:
        angle = isinstance(innermost(sites[latent.name]["fn"]), ANGLES)
        yield replace(latent, support=ONE_TURN) if angle else latent


def inverse(transform: Transform, value: Tensor) -> Tensor:
    """The unconstrained point of a latent value."""
    return transform.inv(value)  # type: ignore[misc]


def rule_out_overflow(log_density: Tensor) -> Tensor:
    """Replace log densities that overflow by minus infinity.

    Overflow far out gives NaN or plus infinity, which would trap chains and dominate sums.
    """
    return torch.where(log_density.isnan() | log_density.isposinf(), -torch.inf, log_density)


def check_continuous(bound: Bound) -> None:
    """Refuse programs whose latents cannot be one real vector."""
    structure = bound.structure
    discrete = [latent.name for latent in structure.model_latents if latent.discrete]
    if discrete:
        raise ValueError(
            f"the latents {discrete} are discrete, but gradients and Markov chains here need "
            "continuous ones; mark finite ones infer={'enumerate': 'parallel'} and leave them "
            "out of the guide to sum them out, or use ImportanceSampling"
        )
    if not structure.model_latents:
        raise ValueError("the program has no latents to integrate over; its evidence is Exact()")
    if structure.per_datum and any(latent.batch_dim == 0 for latent in structure.model_latents):
        raise ValueError(
            f"the data plate {structure.plate!r} is sequential (a Python loop); write it `with "
            "pyro.plate(...):` to run chains for all data at once"
        )


def given_points(target: Unconstrained, points: Tensor) -> Tensor:
    """Check points `[points, dim]` that a user gives.

    Raises:
        ValueError: if each datum has its own latents, or they have another number of entries.
    """
    if target.batch or points.dim() != 2 or points.shape[-1] != target.dim:
        own = ", and each datum has latents of its own" if target.batch else ""
        raise ValueError(
            f"the starts are {tuple(points.shape)}; expected [points, {target.dim}], in "
            f"unconstrained space{own}"
        )
    return points.to(target.origin(1))


def check_support(latent: Latent, draws: Tensor) -> None:
    """Refuse a support that depends on other latents.

    The support was read from one draw.
    """
    if not bool(latent.support.check(draws).all()):
        raise ValueError(
            f"the support {latent.support} of latent {latent.name!r} depends on other latents, so "
            "that no fixed transform unconstrains it; sample a standardised variable and scale it "
            "with pyro.deterministic"
        )
