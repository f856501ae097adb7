"""Sequential Monte Carlo (SMC) estimation of the evidence.

Independent groups of particles give the standard error of log Z.
"""

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, ClassVar

from torch import Tensor

from ppl_dgm.checked import checked
from ppl_dgm.compile import CompileMode
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.normalising import ladder_to
from ppl_dgm.program import Bound
from ppl_dgm.sampling.checkpoint import checkpoint_of, switch_of
from ppl_dgm.sampling.convergence import acceptance_alarm, dominates, mean_exp_std_error
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.kernels import HMC, Kernel
from ppl_dgm.sampling.memory import MEMORY, join_parts
from ppl_dgm.sampling.smc.ladder import Pilot, advance, begin
from ppl_dgm.sampling.smc.paths import Start, check_start, clipping_alarm, divide
from ppl_dgm.sampling.smc.population import Population, Tempering
from ppl_dgm.sampling.smc.resampling import Scheme, effective_size
from ppl_dgm.sampling.undefined import undefined_alarm
from ppl_dgm.validation import check_least

__all__ = ["SMC", "group_alarms"]

LEAST_PILOTS = 48
GROUPS_APART = 1.0  # nats of spread between groups above which a datum fails


@checked
@dataclass(frozen=True)
class SMC(Estimator):
    r"""Sequential Monte Carlo along tempered densities.

    The densities lead from the prior or the guide to the posterior.

    Particles at $f_\beta \propto p(y)\, p(x \mid y)^\beta$ are reweighted by $p(x \mid
    y)^{\Delta\beta}$, resampled, and moved; $\hat Z = \prod_t \sum_i W_i\, p(x \mid
    y_i)^{\Delta\beta_t}$. Each independent group gives one such estimate; the mean of the groups'
    $\hat Z$ is returned, its standard error from their spread (delta method, widened by Student's t
    for few groups). Where data have latents of their own, every datum has its own temperatures,
    step sizes and resampling. Consistent in the number of particles. It costs, for each
    temperature, `num_moves` moves of `num_particles * num_groups` particles.

    Groups agree on what none of them reaches: a posterior mode or a direction that the moves are
    too few for. Compare with `with_twice_the_moves()`, as `check_moves` does.

    Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers"; adaptive temperatures
    after Zhou, Johansen and Aston (2016), "Toward automatic model comparison".

    Args:
        num_particles: particles in each group.
        num_groups: independent groups, at least 2.
        num_moves: moves at each temperature.
        kernel: how particles move; HMC, MALA, RandomWalk or ULA of `ppl_dgm.sampling.kernels`.
        start: `"prior"` or `"guide"`.
        cess: conditional effective sample size from one temperature to the next, as a share in (0,
            1).
        resample_below: effective sample size below which to resample, as a share in [0, 1].
        resampling: `"systematic"`, `"stratified"`, `"residual"` or `"multinomial"`.
        memory: bytes that one evaluation may allocate.
        compile: whether moves run compiled: True, False, or `"auto"`, where that pays.
        checkpoint: a file to continue from if it exists, and to write progress to.

    Raises:
        ValueError: for settings out of range, discrete latents, or a likelihood that is zero at all
            particles.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_dgm
        >>> def model(x=None):
        ...     with pyro.plate("data", 1 if x is None else len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = SMC(num_particles=100)(ppl_dgm.Program(model), torch.zeros(1), seed=0)
        >>> truth = dist.Normal(0.0, 2.0**0.5).log_prob(torch.zeros(1))
        >>> bool((result.log_z - truth).abs() < 4 * result.std_error)
        True
    """

    independent: ClassVar[str | None] = "num_groups"

    num_particles: int = 500
    num_groups: int = 8
    num_moves: int = 2
    kernel: Kernel = field(default_factory=HMC)
    start: Start = "prior"
    cess: float = 0.8
    resample_below: float = 0.5
    resampling: Scheme = "systematic"
    memory: int = MEMORY
    compile: CompileMode = "auto"
    checkpoint: str | PathLike | None = None

    def __post_init__(self) -> None:
        check_least(self, num_particles=2, num_groups=2, num_moves=1, memory=1)
        if not 0 < self.cess < 1:
            raise ValueError(
                f"cess is {self.cess}; expected a share strictly between 0 and 1, e.g. 0.8"
            )
        if not 0 <= self.resample_below <= 1:
            raise ValueError(
                f"resample_below is {self.resample_below}; expected a share between 0 and 1, e.g. "
                "0.5"
            )

    def draws_from(self, bound: Bound) -> Start:
        return self.start

    def check(self, bound: Bound) -> None:
        check_start(bound, self.start)

    def with_twice_the_moves(self) -> "SMC":
        """The same with twice as many moves at each temperature."""
        return replace(self, num_moves=2 * self.num_moves)

    def partition(self, free: Bound) -> Estimate:
        ladder = ladder_to(free)
        if ladder is None:
            return super().partition(free)
        pilot = Pilot.walk(ladder, max(self.num_particles, LEAST_PILOTS))
        beta = pilot.temperatures(pilot.number(self.cess))
        start = begin(
            ladder.draw(self.num_particles * self.num_groups), self.num_groups, len(beta) - 1
        )
        checkpoint = checkpoint_of(self, free)
        climb = checkpoint.loop(
            "ladder",
            start,
            lambda climb: advance(ladder, climb, beta, self.num_moves, self.resample_below),
            lambda climb: climb.step == len(beta) - 1,
        )
        found = {
            "group_log_z": climb.group_log_z,
            "ess": effective_size(climb.log_weights.T).sum(),
            "num_temperatures": climb.overlap.new_tensor(len(beta) - 1.0),
            "overlap": climb.overlap.min(),
        }
        return grouped(found, self.num_particles, group_alarms(found))

    def estimate(self, bound: Bound) -> Estimate:
        checkpoint = checkpoint_of(self, bound)
        total = self.num_particles * self.num_groups
        parts, warnings = [], []
        for first, path in divide(
            bound, self.start, total, self.memory, self.kernel, switch_of(self)
        ):
            tempering = Tempering(
                path,
                self.kernel,
                self.num_particles,
                self.num_groups,
                self.num_moves,
                self.cess,
                self.resample_below,
                self.resampling,
            )
            population = tempering.run(checkpoint, f"data from {first}")
            parts.append(summary(population))
            warnings += undefined_alarm(path.space, population.state.point, self.memory)
        warnings += clipping_alarm(bound, self.start)
        return combine(parts, self.num_particles, tuple(dict.fromkeys(warnings)))


def summary(population: Population) -> dict[str, Tensor]:
    """Summarise a finished population of particles.

    The groups' log Z is `[groups, *batch]`, the diagnostics are `[*batch]`.
    """
    record = population.record
    return {
        "group_log_z": population.log_z,
        "ess": effective_size(population.log_weights).sum(0),
        "acceptance": record.acceptance[1:].mean((0, 1)),
        "lowest_acceptance": record.acceptance[1:].amin(0).mean(0),
        "num_temperatures": (record.beta < 1).sum(0).double().mean(0),
        "overlap": record.overlap[1:].amin((0, 1)),
    }


def combine(
    parts: list[dict[str, Tensor]], num_particles: int, warnings: tuple[str, ...]
) -> Estimate:
    """One estimate from those of all parts of the data."""
    joined = {
        name: join_parts([part[name] for part in parts], name == "group_log_z") for name in parts[0]
    }
    alarms = acceptance_alarm(joined["acceptance"]) + group_alarms(joined)
    return grouped(joined, num_particles, warnings + alarms)


def grouped(found: dict[str, Tensor], num_particles: int, warnings: tuple[str, ...]) -> Estimate:
    """One estimate from those of independent groups, `group_log_z`."""
    log_z = found["group_log_z"]
    diagnostics: dict[str, Any] = found | {
        "num_particles": num_particles,
        "group_std": log_z.std(0),
    }
    return Estimate(log_mean_exp(log_z), mean_exp_std_error(log_z), diagnostics, warnings)


def group_alarms(found: dict[str, Tensor]) -> tuple[str, ...]:
    """Warnings where groups disagree."""
    groups = found["group_log_z"]
    spread = groups.std(0)
    if not dominates(spread > GROUPS_APART, mean_exp_std_error(groups)):
        return ()
    most = float(spread.max())
    warning = (
        f"independent groups disagree by up to {most:.3g} nats (standard deviation); use more "
        "particles or moves"
    )
    return (warning,)
