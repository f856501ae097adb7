"""Bidirectional Monte Carlo: bounds of log Z on both sides.

A posterior draw of simulated data is known, which gives a lower and an upper bound; so does a draw
of an unnormalised model.
"""

import time
from dataclasses import dataclass, field, replace
from os import fspath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.base import check_evidence
from ppl_dgm.evidence.estimate import BoundKind, Estimate
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.evidence.reverse import ReverseAIS, bound_estimate
from ppl_dgm.evidence.sandwich import Sandwich
from ppl_dgm.evidence.simulation import simulate
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.particles import Values
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.checkpoint import Checkpoint, checkpoint_of, switch_of
from ppl_dgm.sampling.memory import join_parts
from ppl_dgm.sampling.smc.annealing import Annealing
from ppl_dgm.sampling.smc.particle_filter import ParticleFilter
from ppl_dgm.sampling.smc.paths import divide
from ppl_dgm.validation import check_least
from ppl_dgm.watching import watched

__all__ = ["BDMC"]


class BothWays(NamedTuple):
    """Forward and backward estimates of log Z.

    Each is `[chains, *batch]`; forwards they are unbiased for Z, backwards for 1/Z.
    """

    forwards: Tensor
    backwards: Tensor
    acceptance: Tensor


@checked
@dataclass(frozen=True)
class BDMC:
    r"""Bidirectional Monte Carlo, a check of AIS or SMC.

    It certifies the method on data simulated from the program itself.

    Drawing data and latents together, $(y^*, x^*) \sim p(y, x)$, makes $y^*$ an exact draw of the
    posterior of $x^*$. Annealing forwards gives $\mathbb{E}\,\hat Z = Z$ and so a stochastic lower
    bound of log Z; annealing backwards from $y^*$ gives $\mathbb{E}\,\hat Z^{-1} = Z^{-1}$ and an
    upper one. With `num_particles` > 1 both are particle filters (SMC), the upper one conditional
    on a trajectory annealed backwards from $y^*$. Both directions share the temperatures, step
    sizes and scales of one pilot, so that neither adapts to itself.

    Where data have latents of their own, each simulated datum has its bounds, as many as data are
    given; a program with global latents has one pair for one simulated data set (repeat it with
    other seeds). It costs twice what the method costs, times `num_particles`.

    Unnormalised programs (`RBM`, `Energy`) have a partition function in place of an integral for
    each datum, and draws of the model in place of $y^*$: the bounds are those of log p of the given
    data, above by the method, below by `ReverseAIS`, which tells where the lower one is an estimate
    because its draws are ends of chains.

    Grosse, Ghahramani and Adams (2015), "Sandwiching the marginal likelihood using bidirectional
    Monte Carlo"; Grosse, Ancha and Roy (2016), "Measuring the reliability of MCMC inference with
    bidirectional Monte Carlo".

    Args:
        method: the annealing to certify.
        num_particles: 1 for AIS; more for SMC with `method.num_chains` groups of that many
            particles.
        memory: bytes that one evaluation may allocate; as the method says by default.

    Raises:
        ValueError: for settings out of range; on call, if data cannot be simulated, latents are
            discrete, or particle filters are asked for an unnormalised program.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> bdmc = BDMC(AIS(num_temperatures=100))
        >>> result = bdmc(ppl_dgm.Program(model), torch.zeros(50), seed=0)
        >>> bool(-0.05 < result.mean_gap < 0.1), result.lower.bound, result.upper.bound
        (True, 'lower', 'upper')
    """

    method: AIS = field(default_factory=AIS)
    num_particles: int = 1
    memory: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_least(self, num_particles=1)
        if self.memory is not None:
            object.__setattr__(self, "method", replace(self.method, memory=self.memory))
        if self.num_particles > 1 and not self.method.kernel.adjusted:
            raise ValueError(
                f"{type(self.method.kernel).__name__} is not reversible, as particle filters in "
                "both directions need; use HMC, MALA or RandomWalk"
            )

    @checked
    def __call__(
        self,
        program: Program,
        *args: Any,
        seed: int | None = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> Sandwich:
        """Bound log Z of data simulated from the program.

        The simulated data are as many as the given ones and have the same covariates. Of an
        unnormalised program, bound log p of the given data.

        Args:
            program: the program.
            *args: data, as its model takes them; observed values are replaced by simulated ones.
            seed: makes the result repeatable.
            progress: show a bar of the densities evaluated, where it takes over two seconds.
            **kwargs: further data.
        """
        with watched("BDMC", progress), evaluating(program), torch.no_grad():
            bound = program.bind(*args, **kwargs).in_double()
            check_evidence(bound)
            if bound.structure.energies:
                return self._of_energies(program, args, kwargs, seed)
            self.method.check(bound)
            start = time.perf_counter()
            with seeded(seed, bound.device):
                values, args, kwargs = simulate(bound)
                bound = program.bind(*args, **kwargs).in_double()
                lower, upper = self._bounds(bound, values)
            seconds = time.perf_counter() - start
            below = self._evidence(bound, lower, "lower", seconds)
            return Sandwich.between(below, self._evidence(bound, upper, "upper", seconds))

    def _of_energies(
        self, program: Program, args: tuple, kwargs: dict[str, Any], seed: int | None
    ) -> Sandwich:
        """Bound log p of given data of an unnormalised program."""
        if self.num_particles > 1:
            raise ValueError(
                f"num_particles is {self.num_particles}, but the program is unnormalised, whose "
                "partition function is annealed in both directions by chains; use num_particles=1"
            )
        path = self.method.checkpoint
        aside = None if path is None else f"{fspath(path)}.reverse"
        reverse = ReverseAIS(replace(self.method, checkpoint=aside))
        upper = self.method(program, *args, seed=seed, progress=False, **kwargs)
        other = None if seed is None else seed + 1
        lower = reverse(program, *args, seed=other, progress=False, **kwargs)
        return Sandwich.between(
            replace(lower, estimator=f"BDMC {lower.bound}"),
            replace(upper, estimator="BDMC upper", bound="upper"),
            simulated=False,
        )

    def _evidence(
        self, bound: Bound, estimate: Estimate, kind: BoundKind, seconds: float
    ) -> Evidence:
        return replace(
            self.method._evidence(bound, estimate, seconds), bound=kind, estimator=f"BDMC {kind}"
        )

    def _bounds(self, bound: Bound, values: Values) -> tuple[Estimate, Estimate]:
        method, ways = self.method, []
        checkpoint = checkpoint_of(method, bound, num_simulations=self.num_particles)
        rows = max(method.num_chains * self.num_particles, method.num_pilots)
        for first, path in divide(
            bound, method.start, rows, method.memory, method.kernel, switch_of(method)
        ):
            point = path.space.unconstrain(values)
            point = point[:, first : first + path.space.batch[0]] if path.space.batch else point
            posterior = point.expand(method.num_chains, *point.shape[1:]).contiguous()
            annealing = method.annealing(path, checkpoint, f"pilot from {first}")
            run = self._anneal if self.num_particles == 1 else self._filter
            ways.append(run(annealing, checkpoint, f" from {first}", posterior))
        acceptance = {"acceptance": join_parts([way.acceptance for way in ways])}
        lower, upper = (
            join_parts([getattr(way, name) for way in ways], True)
            for name in ("forwards", "backwards")
        )
        return bound_estimate(lower, 1.0, acceptance), bound_estimate(upper, -1.0, acceptance)

    def _anneal(
        self, annealing: Annealing, checkpoint: Checkpoint, name: str, posterior: Tensor
    ) -> BothWays:
        forwards = annealing.forwards(checkpoint, "forwards" + name, self.method.num_chains)
        backwards = annealing.backwards(checkpoint, "backwards" + name, posterior)
        acceptance = forwards.acceptance.mean(0) / max(len(annealing.beta) - 2, 1)
        return BothWays(forwards.log_weights, -backwards.log_weights, acceptance)

    def _filter(
        self, annealing: Annealing, checkpoint: Checkpoint, name: str, posterior: Tensor
    ) -> BothWays:
        particles = ParticleFilter(annealing, self.num_particles, self.method.num_chains)
        trajectory = particles.trajectory(checkpoint, "trajectory" + name, posterior)
        forwards = particles.run(checkpoint, "forwards" + name)
        backwards = particles.run(checkpoint, "backwards" + name, trajectory)
        return BothWays(forwards, backwards, torch.ones_like(forwards[0]))
