"""Nested sampling by sequential Monte Carlo."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.posterior_estimator import estimate_in_parts
from ppl_dgm.evidence.smc import group_alarms
from ppl_dgm.program import Bound
from ppl_dgm.sampling.convergence import acceptance_alarm, mean_exp_std_error
from ppl_dgm.sampling.importance import Proposal, log_mean_exp
from ppl_dgm.sampling.kernels.adaptation import nudge_step_size
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.smc.constrained import Density, Particles, move
from ppl_dgm.sampling.smc.resampling import resample
from ppl_dgm.sampling.unconstrained import Unconstrained, check_continuous
from ppl_dgm.sampling.undefined import undefined_alarm
from ppl_dgm.validation import check_least

__all__ = ["NestedSMC"]

ACCEPTANCE = 0.3  # aimed at by the moves
MOST_LEVELS = 300


class Levels(NamedTuple):
    """What is known at a level, `[groups, *batch]`.

    `log_mass` is that of the prior above it, `log_z` the part of log Z below, in nats; `rising`
    tells where higher levels are worth their cost.
    """

    particles: Particles
    log_mass: Tensor
    log_z: Tensor
    step_size: Tensor
    acceptance: Tensor
    rising: Tensor
    number: int

    @property
    def above(self) -> Tensor:
        """The part of log Z above the level."""
        return self.log_mass + log_mean_exp(self.particles.likelihood)

    @property
    def total(self) -> Tensor:
        """log Z, unbiased in Z at any level."""
        return torch.logaddexp(self.log_z, self.above)

    @property
    def left(self) -> Tensor:
        """Most of log Z that can be left above, nats."""
        most = self.log_mass + self.particles.likelihood.amax(0)
        return (most - self.total).exp().nan_to_num(0.0)


@checked
@dataclass(frozen=True)
class NestedSMC(Estimator):
    r"""Nested sampling by sequential Monte Carlo.

    All particles, groups and data go at once. Particles of the prior above a level of likelihood,
    $p(y)\, 1[L(y) > \ell_t]$, are cut at the next level, which a share `keep` of the other groups'
    particles exceeds; those that do are resampled and moved. With $P_t$ the product of the shares,

    $$\hat Z = \sum_t P_t \, \overline{L\, 1[L \le \ell_{t+1}]} + P_T\, \overline{L}.$$

    Each of the independent groups gives one such estimate; the mean is returned with a standard
    error from their spread. No gradient is used, modes keep the mass that they have, and a peak in
    which the likelihood rises only close by is no obstacle, as it is to temperatures. Moves are
    differences of other groups' particles (ter Braak 2006): for up to about ten dimensions. Costs,
    for each level, `num_moves` densities of each particle; levels are about $1.4\, (H + 5)$ with H
    the information in nats.

    Skilling (2006), "Nested sampling for general Bayesian computation"; Salomone, South, Johansen,
    Drovandi and Kroese (2018), "Unbiased and consistent nested sampling via sequential Monte
    Carlo".

    Args:
        num_particles: particles in each group.
        num_groups: independent groups, at least 2.
        num_moves: moves at each level.
        keep: share of the particles above the next level.
        remaining: stop when at most this much of log Z can be left, in nats.
        memory: bytes that evaluating densities may allocate.

    Raises:
        ValueError: for settings out of range, or discrete latents that cannot be summed out.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> result = NestedSMC(num_particles=100)(ppl_dgm.Program(model), torch.zeros(1))
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(()))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    num_particles: int = 500
    num_groups: int = 8
    num_moves: int = 20
    keep: float = 0.5
    remaining: float = 0.01
    memory: int = field(default=MEMORY, repr=False)

    def __post_init__(self) -> None:
        check_least(self, num_particles=8, num_groups=2, num_moves=1, memory=1)
        if not 0 < self.keep < 1:
            raise ValueError(
                f"keep is {self.keep}; expected a share strictly between 0 and 1, e.g. 0.5"
            )
        if not self.remaining > 0:
            raise ValueError(
                f"remaining is {self.remaining}; expected a positive number of nats, e.g. 0.01"
            )

    def draws_from(self, bound: Bound) -> Proposal | None:
        return "prior"

    def check(self, bound: Bound) -> None:
        check_continuous(bound)

    def estimate(self, bound: Bound) -> Estimate:
        total = self.num_particles * self.num_groups
        return estimate_in_parts(bound, total, self.memory, self._estimate_part)

    def _estimate_part(self, bound: Bound) -> Estimate:
        target = Unconstrained(bound)
        density = Density.of(target, self.memory)
        levels = self._begin(target, density)
        while bool(levels.rising.any()) and levels.number < MOST_LEVELS:
            levels = self._raise(density, levels)
        total = levels.total
        found = {
            "num_particles": self.num_particles,
            "group_std": total.std(0),
            "acceptance": levels.acceptance.amin(0),
            "num_levels": levels.number,
        }
        alarms = group_alarms({"group_log_z": total}) + acceptance_alarm(levels.acceptance)
        alarms += unfinished_alarm(levels)
        particles = levels.particles  # of the posterior, once they are resampled
        posterior = particles.take(resample(particles.likelihood)).point.flatten(0, 1)
        alarms += undefined_alarm(target, posterior, self.memory)
        return Estimate(log_mean_exp(total), mean_exp_std_error(total), found, alarms)

    def _begin(self, target: Unconstrained, density: Density) -> Levels:
        point = target.sample_prior(self.num_particles * self.num_groups)
        particles = density(point.unflatten(0, (self.num_particles, self.num_groups)))
        zero = torch.zeros_like(particles.prior[0])
        rising = particles.likelihood.amax(0) > -torch.inf
        return Levels(particles, zero, zero - torch.inf, zero + 1, zero + 1, rising, 0)

    def _raise(self, density: Density, levels: Levels) -> Levels:
        """Cut particles at the next level and move the rest."""
        particles, rising = levels.particles, levels.rising
        ordered = particles.likelihood.sort(0, descending=True).values
        level = of_others(ordered[max(1, min(round(self.keep * len(ordered)), len(ordered) - 1))])
        above = particles.likelihood > level
        rising = rising & above.any(0)
        below = torch.where(above, -torch.inf, particles.likelihood)
        log_z = torch.logaddexp(levels.log_z, levels.log_mass + log_mean_exp(below))
        log_mass = levels.log_mass + above.to(log_z).mean(0).log()
        kept = torch.where(above | ~rising, 0.0, -torch.inf).to(log_z)
        particles = particles.take(resample(kept))
        moved, step_size, acceptance = self._move(density, particles, level, levels.step_size)
        found = levels._replace(
            particles=particles.where(rising, moved),
            log_mass=torch.where(rising, log_mass, levels.log_mass),
            log_z=torch.where(rising, log_z, levels.log_z),
            step_size=step_size,
            acceptance=torch.where(
                rising, levels.acceptance.minimum(acceptance), levels.acceptance
            ),
            number=levels.number + 1,
        )
        return found._replace(rising=rising & (found.left > self.remaining).any(0))

    def _move(
        self, density: Density, particles: Particles, level: Tensor, step_size: Tensor
    ) -> tuple[Particles, Tensor, Tensor]:
        """Move particles above a level, with step sizes and acceptance.

        Differences are of another group's points: those of a group's own resampled points are
        not independent of the copies that they move, and make its estimate too high.
        """
        total = torch.zeros_like(step_size)
        for number in range(self.num_moves):
            others = particles.point.roll(1 + number % (self.num_groups - 1), 1)
            particles, acceptance = move(density, particles, others, level, step_size)
            step_size = nudge_step_size(step_size, acceptance, ACCEPTANCE)
            total = total + acceptance / self.num_moves
        return particles, step_size, total


def of_others(level: Tensor) -> Tensor:
    """Median of the other groups' levels, `[groups, *batch]`.

    A level that a group's own particles choose makes its estimate of Z too high, by the relative
    variance of that estimate (Cerou, Del Moral, Furon and Guyader 2012, "Sequential Monte Carlo for
    rare event estimation").
    """
    others = torch.stack([level.roll(shift, 0) for shift in range(1, len(level))])
    return others.median(0).values


def unfinished_alarm(levels: Levels) -> tuple[str, ...]:
    """Warn where levels still rise at the end."""
    if not bool(levels.rising.any()):
        return ()
    return (f"stopped after {levels.number} levels, before the remaining evidence was small",)
