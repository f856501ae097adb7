"""Choice of evidence estimators for a program, within a budget."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_dgm.evidence.adaptive import AdaptiveImportanceSampling
from ppl_dgm.evidence.agreement import DECISIVE
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.bridge import BridgeSampling
from ppl_dgm.evidence.flow_importance import FlowImportanceSampling
from ppl_dgm.evidence.grid import GridSampling, GridSum
from ppl_dgm.evidence.importance import ImportanceSampling, PriorSampling
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.nested_smc import NestedSMC
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.evidence.smc import SMC
from ppl_dgm.evidence.widened import WideSampling, has_counts
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.scouting import scouted_modes
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = [
    "MOST_BUDGETS",
    "PARTNER_ERROR",
    "Allowance",
    "affordable",
    "checked_data",
    "enlarged",
    "kinds",
    "next_kind",
    "quick_check",
    "scout",
    "starting_from",
    "typical_error",
]

# Densities for each particle: about 12 temperatures, 2 moves, 10 leapfrog steps, a gradient
# counted as 3.
SMC_COST, MOST_SMC_COST = 750, 1125
SMC_GROUPS = 8
TEMPERING_COST = 800  # densities for each point that is tempered
BRIDGE_COST = 4000  # densities for each chain
PARTNER_ERROR = {kind: 0.7 * worst for kind, worst in DECISIVE.items()}  # nats, aimed at
LAPLACE_COST = 16_000  # densities for each datum that is moved on
MOST_BUDGETS = 4  # that moving data on may cost, or a larger run where each datum has its own
LEAST_PARTICLES = 32
LAPLACE_PARTICLES = 20_000
NUM_STARTS, NUM_STEPS, SCREENED = 48, 80, 64
MANY_DATA = 10_000  # numbers observed, from which few starts must do
DATA_AT_COST_ONE = 1000  # numbers observed that count as one density in the budget
FLOW_DIMS, FLOW_STEPS, LEAST_FLOW_STEPS = 50, 400, 100
FLOW_COST = 1250  # densities for each step of fitting a flow, its draws and tempering among them
SCOUTS_PER_DIM, SCOUT_COST = 200, 1000  # and densities of the budget for each
NESTED_DIMS, NESTED_COST = 10, 500  # densities for each particle: about 25 levels, 20 moves


@dataclass(frozen=True)
class Allowance:
    """Target error, budget and memory of `auto`.

    The target is a standard error in nats, the budget a number of densities, the memory in bytes,
    the terms those that one density of a data set sums.
    """

    target: float
    budget: int
    memory: int
    num_terms: int = 0

    def share(self, bound: Bound) -> int:
        """Compute how many particles a quarter of the budget allows."""
        data = (bound.num_data or 1) if bound.structure.per_datum else 1
        return int(self.densities(bound) / (4 * data))

    def densities(self, bound: Bound) -> float:
        """Compute how many densities the budget allows."""
        cost = 1.0 if bound.structure.per_datum else 1 + self.num_terms / DATA_AT_COST_ONE
        return self.budget / cost

    def at(self, program: Program, bound: Bound) -> "Allowance":
        """The same, with the terms counted."""
        with evaluating(program), torch.no_grad():
            return replace(self, num_terms=bound.in_double().num_terms)


def kinds(bound: Bound, settings: Allowance) -> list[Estimator]:
    """List independent kinds of estimator, in order of use.

    They run one after the other until two agree.
    """
    structure, share, memory = bound.structure, settings.share(bound), settings.memory
    particles = max(200, min(share, 100_000))
    if any(latent.discrete for latent in structure.model_latents):
        return discrete_kinds(bound, particles, memory)
    smc = SMC(
        num_particles=max(LEAST_PARTICLES, min(2 * share // (SMC_COST * SMC_GROUPS), 1000)),
        num_groups=SMC_GROUPS,
        cess=0.9,
        memory=memory,
    )
    guided = ImportanceSampling(particles, memory)
    if structure.per_datum:
        return [guided if structure.has_guide else Laplace(memory=memory), smc]
    return [
        *([guided] if structure.has_guide else []),
        *posterior_kinds(bound, settings, smc),
        *nested(bound, settings),
    ]


def posterior_kinds(bound: Bound, settings: Allowance, smc: SMC) -> list[Estimator]:
    """Kinds that look for the posterior themselves, the slowest last."""
    share, memory = settings.share(bound), settings.memory
    chains = max(16, min(share // BRIDGE_COST, 64))
    many = settings.num_terms > MANY_DATA
    starts = Laplace(
        num_starts=8 if many else NUM_STARTS,
        num_steps=NUM_STEPS,
        screened=8 if many else SCREENED,
        num_particles=max(500, min(share, LAPLACE_PARTICLES)),
        memory=memory,
    )
    adaptive = AdaptiveImportanceSampling(
        num_particles=max(1000, min(share, 20_000)),
        num_chains=max(64, min(share // TEMPERING_COST, 512)),
        memory=memory,
    )
    proposal = "student_mixture" if num_latents(bound) <= FLOW_DIMS else "warp3"
    bridge = BridgeSampling(num_chains=chains, memory=memory, proposal=proposal)
    return [starts, adaptive, *flow(bound, adaptive, share), smc, bridge]


def flow(
    bound: Bound, adaptive: AdaptiveImportanceSampling, share: int
) -> list[FlowImportanceSampling]:
    """Importance sampling from a flow.

    It is left out where the dimensions are many or the budget is small.
    """
    num_steps = min(share // FLOW_COST, FLOW_STEPS)
    if num_latents(bound) > FLOW_DIMS or num_steps < LEAST_FLOW_STEPS:
        return []
    flow = FlowImportanceSampling(
        num_particles=adaptive.num_particles,
        num_chains=adaptive.num_chains // 2,
        num_steps=num_steps,
        memory=adaptive.memory,
    )
    return [flow]


def num_latents(bound: Bound) -> int:
    """Count the numbers that a draw of the latents has."""
    return sum(value.numel() for value in bound.draw_prior(1).values.values())


def nested(bound: Bound, settings: Allowance) -> list[Estimator]:
    """Nested sampling, where the dimensions are few."""
    if num_latents(bound) > NESTED_DIMS:
        return []
    particles = max(32, min(4 * settings.share(bound) // (NESTED_COST * SMC_GROUPS), 500))
    return [NestedSMC(particles, SMC_GROUPS, memory=settings.memory)]


def discrete_kinds(bound: Bound, particles: int, memory: int) -> list[Estimator]:
    """List estimators for discrete latents that cannot be summed out.

    They draw from the guide, from the prior, and from a wider proposal (counts) or all values
    (finite latents).

    Without a guide, importance sampling is prior sampling: it is no second kind.
    """
    found: list[Estimator] = [PriorSampling(2 * particles, memory)]
    if bound.structure.has_guide:
        found.insert(0, ImportanceSampling(particles, memory))
    if has_counts(bound):
        found.append(WideSampling(2 * particles, memory))
    if all(latent.discrete for latent in bound.structure.model_latents):
        found.append(grid(bound, particles, memory))
    return found


def grid(bound: Bound, most: int, memory: int) -> Estimator:
    """Sum over discrete latents, all values or draws."""
    whole = GridSum(most, memory)
    try:
        whole.check(bound)
    except ValueError:
        return GridSampling(most, memory)
    return whole


def quick_check(settings: Allowance) -> SMC:
    """Particles enough to check a precise estimate."""
    return SMC(num_particles=200, num_groups=8, memory=settings.memory)


def next_kind(first: Estimator, count: int, settings: Allowance) -> Estimator | None:
    """Choose the estimator of data that the first fails on."""
    most = MOST_BUDGETS * settings.budget // count
    if not isinstance(first, Laplace):
        return Laplace(memory=settings.memory) if most >= LAPLACE_COST else None
    quick = quick_check(settings)
    particles = most // (SMC_COST * quick.num_groups)
    if particles < LEAST_PARTICLES:
        return None
    return replace(quick, num_particles=min(particles, quick.num_particles))


def affordable(estimator: Estimator, most: float) -> Estimator:
    """Take no more particles than cost `most` densities."""
    if not isinstance(estimator, SMC):
        return estimator
    particles = max(LEAST_PARTICLES, most / (MOST_SMC_COST * estimator.num_groups))
    return replace(estimator, num_particles=int(min(estimator.num_particles, particles)))


def enlarged(estimator: Estimator, found: Evidence | None, most: float) -> Estimator | None:
    """Take as many particles as make a vague estimate decisive.

    Returns None for other estimators, with alarms, and where that are more than `most` times as
    many.
    """
    if not isinstance(estimator, SMC) or found is None or not found.reliable:
        return None
    error = typical_error(found) / PARTNER_ERROR[found.target]
    if not 1 < error**2 <= most:
        return None
    return replace(estimator, num_particles=math.ceil(error**2 * estimator.num_particles))


def checked_data(bound: Bound, check: Estimator, budget: int) -> Tensor | None:
    """Choose the data for the second estimator, as indices.

    The data are evenly spaced; None stands for all of them.
    """
    num_data = bound.num_data or 1
    if not (bound.structure.per_datum and bound.structure.divisible and isinstance(check, SMC)):
        return None
    affordable = max(4, budget // (2 * check.num_particles * check.num_groups * SMC_COST))
    if affordable >= num_data:
        return None
    return torch.linspace(0, num_data - 1, affordable, device=bound.device).round().long()


def typical_error(evidence: Evidence) -> float:
    """Compute the root mean square of the standard errors.

    The mean is over data.
    """
    return float(evidence.std_error.square().mean().sqrt())


def starting_from(estimators: list[Estimator], modes: Tensor) -> list[Estimator]:
    """The estimators, those that take starts with the modes."""
    takes = (Laplace, AdaptiveImportanceSampling)
    return [replace(e, starts=modes) if isinstance(e, takes) else e for e in estimators]


def scout(program: Program, bound: Bound, seed: int | None, settings: Allowance) -> Tensor | None:
    """Search for modes that few draws lead to.

    Returns points `[found, dim]` in unconstrained space, or None where there are none or the search
    does not apply.
    """
    discrete = any(latent.discrete for latent in bound.structure.model_latents)
    if bound.structure.per_datum or discrete:
        return None
    try:
        with evaluating(program), seeded(seed, bound.device):
            target = Unconstrained(bound.in_double())
            num_scouts = min(SCOUTS_PER_DIM * target.dim, settings.densities(bound) / SCOUT_COST)
            modes = scouted_modes(target, int(num_scouts), settings.memory)
    except Exception:  # whatever the program raises far out, or without derivatives
        return None
    return modes if len(modes) else None
