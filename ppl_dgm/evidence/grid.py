"""Naive Monte Carlo over a uniform grid of finite latents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.base import Estimate, Estimator
from ppl_dgm.evidence.importance import weighted_estimate
from ppl_dgm.program import Bound, Latent
from ppl_dgm.program.bound_program import Values
from ppl_dgm.sampling.effort import spend
from ppl_dgm.sampling.importance import WeightSummary, expand_particles
from ppl_dgm.sampling.kernels.gibbs import values_of
from ppl_dgm.sampling.memory import MEMORY, chunk_plan
from ppl_dgm.validation import check_least

__all__ = ["GridSampling"]


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
