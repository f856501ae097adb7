"""SUMO: an estimate without bias, by Russian roulette."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.weight_estimator import WeightEstimator
from ppl_dgm.program import Bound
from ppl_dgm.sampling.convergence import mean_std_error
from ppl_dgm.sampling.weight_summary import pareto_k
from ppl_dgm.validation import check_least

__all__ = ["SUMO", "reach", "roulette", "stopping_times"]

CERTAIN_TERMS = 80  # where SUMO's stopping changes from 1 / k to geometric
DECAY = 0.9


@checked
@dataclass(frozen=True)
class SUMO(WeightEstimator):
    r"""Unbiased estimate of log Z by Russian roulette (SUMO).

    The roulette is over the number of particles.

    With $\Delta_k = \mathcal{L}_{m+k} - \mathcal{L}_{m+k-1}$ the gains of the importance-weighted
    bound,

    $$\mathrm{SUMO} = \mathcal{L}_m + \sum_{k=1}^{T} \frac{\Delta_k}{\mathbb{P}(T \ge k)}, \qquad
      \mathbb{P}(T \ge k) = \tfrac1k \ (k \le 80), \text{ then falling by } 0.9,$$

    has expectation log Z. The mean over replicates is returned with the standard error of their
    spread, which can be heavy-tailed. Costs `num_replicates * (num_particles + max T)` runs, T
    about 100 at most.

    Luo, Beatson, Norouzi, Zhu, Duvenaud, Adams and Chen (2020), eqs. 8 and 11.

    Args:
        num_particles: m, particles that every replicate has.
        proposal: `"guide"` or `"prior"`.
        num_replicates: independent replicates.
        memory: bytes that one chunk of draws may allocate.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = SUMO()(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 8
    num_replicates: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_replicates=2)

    def estimate(self, bound: Bound) -> Estimate:
        shape = (self.num_replicates, *([bound.num_data or 1] if bound.structure.per_datum else []))
        stops = stopping_times(torch.rand(shape, dtype=torch.float64, device=bound.device))
        longest = self.num_particles + int(stops.max())
        flat = self.weights(bound, self.num_replicates * longest)
        values = roulette(
            flat.unflatten(0, (self.num_replicates, longest)),
            self.num_particles,
            stops.to(flat.device),
        )
        diagnostics: dict[str, Any] = {"pareto_k": pareto_k(flat), "num_particles": longest}
        return Estimate(values.mean(0), mean_std_error(values), diagnostics)


def reach(k: Tensor) -> Tensor:
    """P(T >= k)."""
    return torch.where(k <= CERTAIN_TERMS, 1 / k, DECAY ** (k - CERTAIN_TERMS) / CERTAIN_TERMS)


def stopping_times(uniform: Tensor) -> Tensor:
    """Compute stopping times from uniform draws.

    This inverts `reach`: the largest k with P(T >= k) >= u.
    """
    early = (1 / uniform).floor()
    late = CERTAIN_TERMS + ((uniform * CERTAIN_TERMS).log() / math.log(DECAY)).floor()
    return torch.where(uniform * CERTAIN_TERMS >= 1, early, late).clamp_min(1)


def roulette(log_weights: Tensor, num_certain: int, stops: Tensor) -> Tensor:
    """Compute the SUMO estimate of each replicate.

    Log weights are `[replicates, particles, *batch]`, the numbers at which they stop `[replicates,
    *batch]`.
    """
    position = torch.arange(
        1, log_weights.shape[1] + 1, dtype=log_weights.dtype, device=log_weights.device
    )
    position = position.reshape((-1,) + (1,) * (log_weights.dim() - 2))
    bounds = log_weights.logcumsumexp(1) - position.log()
    gains = bounds[:, num_certain:] - bounds[:, num_certain - 1 : -1]
    k = position[num_certain:] - num_certain
    kept = k <= stops.unsqueeze(1)
    return bounds[:, num_certain - 1] + torch.where(kept, gains / reach(k), 0.0).sum(1)
