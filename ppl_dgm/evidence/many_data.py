"""Evidence of many data, cross-checked on a part of them.

The posterior of many data under few parameters is narrow and nearly normal: importance sampling
around its modes takes hundreds of densities of all data, where samplers take tens of thousands.
Whether it is right for a program is seen on a part of the data, where every kind is cheap.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ppl_dgm.data.conversion import Arguments
from ppl_dgm.evidence.adaptive import AdaptiveImportanceSampling
from ppl_dgm.evidence.agreement import compare_two, is_decisive
from ppl_dgm.evidence.bridge import BridgeSampling
from ppl_dgm.evidence.kinds import Allowance, scout, typical_error
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.program import Bound, Program
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.climbing import distinct, same_mode
from ppl_dgm.sampling.effort import limited_effort
from ppl_dgm.sampling.missed_modes import scouted_before
from ppl_dgm.sampling.student_mixtures import mode_mixture
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["checked_on_few"]

LEAST = 20_000  # numbers observed, from which samplers of all data take minutes
FEW, MORE = 1000, 30_000  # data of the part, and of a larger one that is climbed first
NUM_STEPS, NEAR, FAR = 80, 12, 4  # of climbs, and starts around the part's modes and from the prior
PARTICLES, LEAST_PARTICLES, MOST_PARTICLES, MARGIN = 1000, 100, 10_000, 1.3
MOST_BUDGETS = 2  # as for other kinds until two agree; the part has a budget of its own
NUM_CHAINS, NUM_BRIDGE_CHAINS = 64, 16


def checked_on_few(
    program: Program, bound: Bound, seed: int | None, settings: Allowance
) -> Evidence | None:
    """Estimate the evidence of many data around its modes.

    On a random part of the data importance sampling around the modes must agree with adaptive
    importance sampling and with bridge sampling, or with the one of them that has no alarm. The
    modes of all data are then climbed to from around those of the part, and from the prior; where
    data are very many, from the modes of a larger part that these have led to.

    Returns None where data are few, cannot be divided or have latents of their own, where the part
    or the estimate has an alarm, or costs more than its budget: then all kinds must run on all
    data.
    """
    if not is_possible(bound, settings):
        return None
    size = bound.num_data or 1
    given = part_of(bound, FEW)
    args, kwargs = given
    few = program.bind(*args, **kwargs)
    afforded = settings.at(program, few)
    try:
        with limited_effort(afforded.densities(few)) as effort:
            around = around_modes(program, few, seed, afforded)
            with scouted_before(around.starts):
                part, others = agreement_on(program, given, around, seed)
            around = replace(around, starts=points_around(program, few, around, seed))
            around = replace(around, num_starts=FAR, screened=FAR)
            if size > 2 * MORE:
                args, kwargs = part_of(bound, MORE)
                more = program.bind(*args, **kwargs)
                around = replace(around, starts=ends(program, more, around, seed), num_starts=1)
        needed = MARGIN * PARTICLES * (typical_error(part) / settings.target) ** 2
        num_particles = int(min(max(LEAST_PARTICLES, needed), MOST_PARTICLES))
        around = replace(around, num_particles=num_particles)
        with limited_effort(MOST_BUDGETS * settings.densities(bound)) as further:
            found = around(program, *bound.args, seed=seed, **bound.kwargs)
    except Exception:  # whatever the program or a solver raises: other kinds have their turn
        return None
    if not found.reliable:
        return None
    numbers = {"part": part.log_z, **{other.estimator: other.log_z for other in others}}
    names = " and ".join(other.estimator for other in others)
    return replace(
        found,
        estimator=f"{found.estimator} agrees with {names} on {FEW} of {size} data",
        diagnostics={
            **found.diagnostics,
            "estimates": numbers,
            "densities": effort.spent + further.spent,
        },
    )


def around_modes(program: Program, part: Bound, seed: int | None, settings: Allowance) -> Laplace:
    """Importance sampling around modes, narrow ones of a part too."""
    return Laplace(
        num_steps=NUM_STEPS,
        num_particles=PARTICLES,
        starts=scout(program, part, seed, settings),
        memory=settings.memory,
    )


def agreement_on(
    program: Program, given: Arguments, around: Laplace, seed: int | None
) -> tuple[Evidence, list[Evidence]]:
    """Estimate the evidence of a part by three kinds.

    Returns the first and those that it agrees with.

    Raises:
        ValueError: where the first or both others have an alarm, or one without alarm disagrees.
    """
    args, kwargs = given
    kinds = (
        around,
        AdaptiveImportanceSampling(
            2 * PARTICLES, num_chains=NUM_CHAINS, starts=around.starts, memory=around.memory
        ),
        BridgeSampling(num_chains=NUM_BRIDGE_CHAINS, memory=around.memory),
    )
    first, *others = (kind(program, *args, seed=seed, **kwargs) for kind in kinds)
    partners = [other for other in others if is_decisive(other)]
    if not (partners and is_decisive(first)):
        raise ValueError("estimates of the part have alarms")
    if not all(compare_two(first, partner).agrees for partner in partners):
        raise ValueError("estimates of the part disagree")
    return first, partners


def part_of(bound: Bound, size: int) -> Arguments:
    """Choose a random part of the data."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randperm(bound.num_data or 1, generator=generator, device="cpu")[:size]
    return bound.select(drawn.to(bound.device or "cpu"))


def points_around(program: Program, part: Bound, around: Laplace, seed: int | None) -> Tensor:
    """Draw points around the modes of a part: `[points, dim]`."""
    with evaluating(program), torch.no_grad(), seeded(seed, part.device):
        target = Unconstrained(part.in_double())
        modes = around.modes(target)
        return mode_mixture(modes, distinct(modes)).sample(NEAR).to(target.dtype)


def ends(program: Program, part: Bound, around: Laplace, seed: int | None) -> Tensor:
    """Climb on a part: `[starts, dim]`, equal at one mode."""
    with evaluating(program), torch.no_grad(), seeded(seed, part.device):
        modes = around.modes(Unconstrained(part.in_double()))
        return modes.point[same_mode(modes).double().argmax(0)[modes.valid]]


def is_possible(bound: Bound, settings: Allowance) -> bool:
    """Return whether a part of many data can check them."""
    structure = bound.structure
    own = any(latent.local or latent.discrete for latent in structure.latents)
    many = settings.num_terms >= LEAST and (bound.num_data or 1) >= 10 * FEW
    return many and not own and not structure.has_guide and structure.divisible
