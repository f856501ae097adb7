"""Sums over all values of discrete latents."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.checked import checked
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.importance import weighted_estimate
from ppl_dgm.evidence.widened import innermost_support
from ppl_dgm.program import Bound, Latent
from ppl_dgm.program.particles import Values
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.importance import expand_particles
from ppl_dgm.sampling.kernels.gibbs import values_of
from ppl_dgm.sampling.memory import MEMORY, chunk_plan, join_parts
from ppl_dgm.sampling.weight_summary import WeightSummary
from ppl_dgm.validation import check_least

__all__ = ["GridSampling", "GridSum"]

TAIL = 1e-3  # share of the sum in the upper half of the counts above which others are left out


@checked
@dataclass(frozen=True)
class GridSampling(Estimator):
    r"""Naive Monte Carlo with uniform draws of finite latents.

    Latents are drawn from all their values.

    $$\log \hat Z = \log |\mathcal{Z}| + \log \frac1K \sum_k p(x, z_k), \qquad z_k \sim
    \mathrm{Uniform}(\mathcal{Z}),$$

    the simplest estimate of $\sum_z p(x, z)$: neither guide nor prior is needed. It is consistent,
    and useless where few of the $|\mathcal{Z}|$ values carry the sum, which Pareto k and the
    effective sample size tell. Costs K runs.

    Mohamed and Lakshminarayanan (2016) and course notes on deep generative models; Owen (2013), ch.
    9, on its variance.

    Args:
        num_particles: K, draws for each datum (or for the data set).
        memory: bytes that one chunk of draws may allocate.

    Raises:
        ValueError: for latents that are continuous, infinitely many, or already summed out.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5).expand([4]).to_event(1))
        ...         pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)
        >>> result = GridSampling(num_particles=2000)(ppl_dgm.Program(model), torch.tensor([2.0]))
        >>> k = torch.arange(5.0)
        >>> exact = dist.Binomial(4, 0.5).log_prob(k) + dist.Normal(2.0, 1.0).log_prob(k)
        >>> bool((result.log_z - exact.logsumexp(0)).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 10000
    memory: int = MEMORY
    sum_out: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_least(self, num_particles=2, memory=1)

    def check(self, bound: Bound) -> None:
        latents = bound.structure.model_latents
        check_discrete(latents)
        for latent in latents:
            values_of(latent, torch.zeros(()))

    def estimate(self, bound: Bound) -> Estimate:
        parts = [self._part(part, particles) for _, part, particles in self._plan(bound)]
        return weighted_estimate(parts, self.num_particles)

    def _plan(self, bound: Bound) -> Iterator[tuple[int, Bound, int]]:
        return chunk_plan(
            bound, self.num_particles, self.memory, lambda part: grid_weights(part, 1)
        )

    def _part(self, bound: Bound, particles: int) -> WeightSummary:
        summary, done = WeightSummary(self.num_particles), 0
        while done < self.num_particles:
            count = min(particles, self.num_particles - done)
            spend(count * (bound.num_data or 1 if bound.structure.per_datum else 1))
            summary.add(grid_weights(bound, count))
            done += count
        return summary


@checked
@dataclass(frozen=True)
class GridSum(Estimator):
    r"""Sum over all values of few discrete latents.

    $\log Z = \log \sum_z p(x, z)$, each value once. Counts without upper limit go up to the number
    that `num_values` allows; the share of the sum in their upper halves is its error, and a warning
    where it is above a thousandth. Costs one density for each value.

    Args:
        num_values: most joint values of the latents (of each datum, or of the data set).
        memory: bytes that one chunk of values may allocate.

    Raises:
        ValueError: for continuous latents, or more values than `num_values`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     k = pyro.sample("k", dist.Poisson(3.0))
        ...     pyro.sample("x", dist.Poisson(0.5 + 0.0 * k), obs=x)
        >>> result = GridSum()(ppl_dgm.Program(model), torch.tensor(2.0))
        >>> truth = dist.Poisson(0.5).log_prob(torch.tensor(2.0))
        >>> torch.allclose(result.log_z, truth.double())
        True
    """

    num_values: int = 100_000
    memory: int = MEMORY
    sum_out: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_least(self, num_values=2, memory=1)

    def check(self, bound: Bound) -> None:
        check_discrete(bound.structure.model_latents)
        Grid.of(bound, self.num_values)

    def estimate(self, bound: Bound) -> Estimate:
        def parts(bound: Bound, most: int) -> Iterator[tuple[Tensor, Tensor]]:
            grid = Grid.of(bound, self.num_values)
            return grid.parts(bound, most)

        size = Grid.of(bound, self.num_values).size
        plan = chunk_plan(bound, size, self.memory, lambda part: next(parts(part, 1)))
        found = [summed(parts(part, most)) for _, part, most in plan]
        total, high = (join_parts(list(each)) for each in zip(*found, strict=True))
        share = (high - total).exp().nan_to_num(0.0).clamp(max=1 - 1e-15)
        return Estimate(total, -torch.log1p(-share), {"tail_share": share}, tail_warnings(share))


class Axis(NamedTuple):
    """Values of a latent, and strides in a grid.

    `stride` has the shape of one draw, `[1, ...]`.
    """

    values: Tensor
    stride: Tensor
    endless: bool

    def places(self, index: Tensor) -> Tensor:
        """Places of entries among their values, at points `[n]`."""
        index = index.reshape(-1, *[1] * (self.stride.dim() - 1))
        return index // self.stride % len(self.values)


@dataclass(frozen=True)
class Grid:
    """All joint values of discrete latents, numbered."""

    axes: dict[str, Axis]
    size: int

    @classmethod
    def of(cls, bound: Bound, num_values: int) -> "Grid":
        """Make the grid of a program.

        Counts go as far as the finite latents leave values.
        """
        example = bound.draw_prior(1).values
        latents = [(each, example[each.name]) for each in bound.structure.model_latents]
        finite = {each.name: values_of(each, like) for each, like in latents if not endless(each)}
        sizes = {each.name: entries(bound, each, like) for each, like in latents}
        joint = math.prod(len(finite[name]) ** sizes[name] for name in finite)
        many = sum(sizes[name] for name in sizes if name not in finite)
        limit = int((num_values / joint + 0.5) ** (1 / many)) if many else 2
        if joint > num_values or limit < 2:
            raise ValueError(
                f"the discrete latents have more than {num_values} joint values; raise num_values, "
                "or use GridSampling or PriorSampling"
            )
        axes, size = {}, 1
        for each, like in latents:
            upto = torch.arange(limit, dtype=like.dtype, device=like.device)
            values = finite.get(each.name, upto)
            axes[each.name] = Axis(
                values, size * len(values) ** numbered(bound, each, like), endless(each)
            )
            size *= len(values) ** sizes[each.name]
        return cls(axes, size)

    def parts(self, bound: Bound, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Log densities of all values, and which counts are high.

        The first are `[n, *batch]`, the second `[n]`, for at most `most` values at a time.
        """
        for first in range(0, self.size, most):
            index = torch.arange(first, min(first + most, self.size), device=bound.device)
            spend(len(index) * (bound.num_data or 1 if bound.structure.per_datum else 1))
            places = {name: axis.places(index) for name, axis in self.axes.items()}
            values = {name: axis.values[places[name]] for name, axis in self.axes.items()}
            log_joint = bound.proper().log_joint(values).total
            high = torch.zeros_like(index, dtype=torch.bool)
            for name, axis in self.axes.items():
                upper = places[name] >= len(axis.values) // 2
                high |= axis.endless & upper.reshape(len(index), -1).any(1)
            yield expand_particles(log_joint, len(index)).double(), high


def summed(parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Log sums of all densities, and of high counts."""
    sums = [(log_p.logsumexp(0), log_p[high].logsumexp(0)) for log_p, high in parts]
    total, high = (torch.stack(each).logsumexp(0) for each in zip(*sums, strict=True))
    return total, high


def numbered(bound: Bound, latent: Latent, value: Tensor) -> Tensor:
    """Number the entries of a latent, alike for all data."""
    shape = list(value.shape)
    if bound.structure.per_datum:
        shape[latent.batch_dim] = 1
    numbers = torch.arange(math.prod(shape), device=value.device).reshape(shape)
    return numbers.expand(value.shape)


def endless(latent: Latent) -> bool:
    """Whether a latent is a count without upper limit."""
    return innermost_support(latent.support) is constraints.nonnegative_integer


def tail_warnings(share: Tensor) -> tuple[str, ...]:
    """Warn where counts that are left out may matter."""
    largest = float(share.max())
    if largest <= TAIL:
        return ()
    text = "of the sum is at counts in the upper half of those summed; larger ones are left out"
    return (f"{100 * largest:.2g} % {text}: raise num_values",)


def check_discrete(latents: Sequence[Latent]) -> None:
    """Refuse continuous latents, or none.

    Raises:
        ValueError: for these.
    """
    if not latents:
        raise ValueError(
            "no latents are drawn: all are summed out already, and the evidence is Exact()"
        )
    continuous = [latent.name for latent in latents if not latent.discrete]
    if continuous:
        raise ValueError(
            f"the latents {continuous} are continuous and have no grid; use ImportanceSampling "
            "or AIS"
        )


def grid_weights(bound: Bound, num_particles: int) -> Tensor:
    """Compute log weights at uniform draws of the latents.

    They are log p(x, z) + log |Z|, `[num_particles, *batch]`.
    """
    values: Values = {}
    log_size = 0.0
    example = bound.draw_prior(1).values
    for latent in bound.structure.model_latents:
        options = values_of(latent, example[latent.name])
        shape = (num_particles, *example[latent.name].shape[1:])
        values[latent.name] = options[torch.randint(len(options), shape, device=options.device)]
        log_size += math.log(len(options)) * entries(bound, latent, example[latent.name])
    log_joint = bound.proper().log_joint(values).total
    return expand_particles(log_joint + log_size, num_particles)


def entries(bound: Bound, latent: Latent, value: Tensor) -> int:
    """Count the discrete variables in a latent.

    Only those of one datum count where data have latents of their own.
    """
    data = value.shape[latent.batch_dim] if bound.structure.per_datum else 1
    return value[0].numel() // data
