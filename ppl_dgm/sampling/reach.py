"""Posterior mass that no draw of a proposal reached."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.program import Bound
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.climbing import climb_likelihood, distinct, find_modes
from ppl_dgm.sampling.convergence import dominates
from ppl_dgm.sampling.differences import propose_by_differences
from ppl_dgm.sampling.effort import OverBudgetError
from ppl_dgm.sampling.importance import Proposal
from ppl_dgm.sampling.kernels.adaptation import nudge_step_size
from ppl_dgm.sampling.kernels.targets import take
from ppl_dgm.sampling.memory import some_of
from ppl_dgm.sampling.smc.resampling import resample, shuffle
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.undefined import undefined_alarm

__all__ = [
    "ABOVE",
    "jointly_missed",
    "missed_mode_alarm",
    "share_alarm",
    "unreached_alarm",
    "walked_alarm",
]

DRAWS_PER_CHAIN = 100  # of the estimate
LEAST_CHAINS, MOST_CHAINS = 64, 512
STARTS_PER_CHAIN = 8  # draws that each chain's start is resampled from
MOVES, WARM_UP = 20, 5
ABOVE = 0.1  # nats by which a weight exceeds all that were drawn
ACCEPTANCE = 0.3
MATERIAL = 0.005  # nats
WALKED_DATA = 16  # data from whose draws chains start
STARTS, CLIMBS, MOST_CLIMBED = 8, 40, 30  # starts of climbs, their steps, and dimensions at most
NEARBY = 3.0  # draws expected around modes below which they are missed


class Weighed(NamedTuple):
    """Points `[n, *batch, dim]`, log joint densities and log weights."""

    point: Tensor
    log_joint: Tensor
    log_weight: Tensor


def unreached_alarm(
    bound: Bound,
    largest: Tensor,
    log_z: Tensor,
    std_error: Tensor,
    proposal: Proposal,
    num_particles: int,
    memory: int,
) -> tuple[str, ...]:
    """Warn of posterior mass beyond all draws.

    Weights of draws tell nothing of places where none fell. Chains of the posterior that start at
    draws walk into such places nearby: there weights are larger than the largest drawn. In a run
    that is right, that share of the posterior is about the largest weight's, within the standard
    error. Modes of a data set far from all draws, as data that contradict the prior have, are
    climbed to.

    Args:
        bound: the program and its data.
        largest: log weights, `[data]` or `[]`.
        log_z: estimate, nats, same shape.
        std_error: of log Z, nats, same shape.
        proposal: where the draws come from.
        num_particles: draws behind each.
        memory: bytes that evaluating densities may allocate.
    """
    bound, index = some_of(bound, WALKED_DATA)
    largest, log_z, std_error = (part[index] for part in (largest, log_z, std_error))
    chains = max(LEAST_CHAINS, min(num_particles // DRAWS_PER_CHAIN, MOST_CHAINS))
    try:
        share, warnings = share_above(bound, largest + ABOVE, proposal, chains, memory)
    except ValueError:  # discrete latents, or a guide without a density at given points
        return ()
    alarm = warnings + share_alarm(share, chains, std_error)
    return alarm or missed_mode_alarm(bound, log_z, std_error, proposal, num_particles)


def walked_alarm(
    weigh: Callable[[Tensor], tuple[Tensor, Tensor]],
    points: Tensor,
    log_weights: Tensor,
    std_error: Tensor,
) -> tuple[str, ...]:
    """Warn of posterior mass beyond the draws of any proposal.

    Args:
        weigh: log joint densities and log weights at points, each `[n, *batch]`.
        points: the draws, `[n, *batch, dim]`.
        log_weights: theirs, `[n, *batch]`.
        std_error: of log Z, nats, `[*batch]`.
    """

    def weighed(part: Tensor) -> Weighed:
        return Weighed(part, *weigh(part))

    start = weighed(take(points, shuffle(resample(log_weights, LEAST_CHAINS))))
    share, _ = walk(weighed, start, log_weights.amax(0) + ABOVE)
    return share_alarm(share, LEAST_CHAINS, std_error)


def missed_mode_alarm(
    bound: Bound,
    log_z: Tensor,
    std_error: Tensor,
    proposal: Proposal,
    num_particles: int,
    starts: Tensor | None = None,
) -> tuple[str, ...]:
    """Warn of modes that no draw came near.

    They are climbed to from the starts, `[points, dim]`, or from a few draws.
    """
    target = Unconstrained(bound)
    if target.batch or target.dim > MOST_CLIMBED:
        return ()
    guided = proposal == "guide" and bound.structure.has_guide
    try:
        modes = find_modes(target, few_starts(target, guided) if starts is None else starts, CLIMBS)
    except OverBudgetError:
        raise
    except Exception:  # whatever the program raises far out, or without derivatives
        return ()
    with torch.no_grad():
        density = target.log_guide(modes.point) if guided else target.split(modes.point).prior
    nearby = density + (modes.log_z - modes.log_joint) + math.log(num_particles)
    missed = jointly_missed(torch.where(distinct(modes), nearby, torch.inf))
    cost = torch.where(missed, modes.log_z - log_z, -torch.inf).logsumexp(0).exp().log1p()
    if not bool(cost > 2 * std_error + MATERIAL):
        return ()
    share = 100 * float(-torch.expm1(-cost))
    return (f"{share:.3g} % of the posterior lies at modes that no draw came near; use auto",)


def jointly_missed(nearby: Tensor) -> Tensor:
    """Whether modes are among those that few draws came near.

    Args:
        nearby: log of the draws expected around each mode, infinite for none. Those with the
            least are missed, as long as fewer than three draws are expected around all of them.
    """
    ordered, order = nearby.sort()
    return (ordered.logcumsumexp(0) < math.log(NEARBY))[order.argsort()]


def few_starts(target: Unconstrained, guided: bool) -> Tensor:
    """Draw a few, half of them climbed up the likelihood."""
    start = target.sample_guide(STARTS)[0] if guided else target.sample_prior(STARTS)
    start[::2] = climb_likelihood(target, start[::2], CLIMBS)
    return start


def share_alarm(share: Tensor, count: int, std_error: Tensor) -> tuple[str, ...]:
    """Warn where a share of the posterior was not reached.

    Args:
        share: of posterior points with larger weights than all draws, `[data]` or `[]`.
        count: independent posterior points.
        std_error: of log Z, nats, same shape.
    """
    noise = ((share * (1 - share) + 1 / count) / count).sqrt()
    cost = -torch.log1p(-share.clamp(max=0.99))
    failing = (share > 2 * noise) & (cost > 2 * std_error + MATERIAL)
    if not dominates(failing, torch.where(failing, cost, std_error)):
        return ()
    warning = (
        f"{100 * float(share.max()):.3g} % of the posterior lies where no draw came: chains find "
        "larger weights there; the proposal is too narrow, or misses a mode. Use SMC"
    )
    return (warning,)


def share_above(
    bound: Bound, largest: Tensor, proposal: Proposal, num_chains: int, memory: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Estimate the posterior mass of larger weights, `[*batch]`.

    Warns of densities that are NaN where the chains end.
    """
    target = Unconstrained(bound)
    guided = proposal == "guide" and bound.structure.has_guide

    def densities(points: Tensor) -> Tensor:
        split = target.split(points)
        log_q = target.log_guide(points) if guided else split.prior
        return torch.stack([split.total, split.total - log_q], -1)

    def weigh(points: Tensor) -> Weighed:
        return Weighed(points, *evaluate(densities, points, memory).unbind(-1))

    count = STARTS_PER_CHAIN * num_chains
    drawn = weigh(target.sample_guide(count)[0] if guided else target.sample_prior(count))
    chosen = shuffle(resample(drawn.log_weight.nan_to_num(nan=-torch.inf), num_chains))
    start = Weighed(*(take(part, chosen) for part in drawn))
    share, end = walk(weigh, start, largest)
    return share, undefined_alarm(target, end, memory)


def walk(
    weigh: Callable[[Tensor], Weighed], here: Weighed, largest: Tensor
) -> tuple[Tensor, Tensor]:
    """Walk from the starts and count larger weights.

    Returns their share `[*batch]` and the last points.
    """
    others, step_size = here.point, torch.ones_like(here.log_joint[0])
    above = []
    for _ in range(MOVES):
        there = weigh(propose_by_differences(here.point, others, step_size).to(others.dtype))
        accepted = torch.rand_like(step_size.expand_as(here.log_joint)).log() < (
            there.log_joint - here.log_joint
        )
        here = Weighed(
            torch.where(accepted.unsqueeze(-1), there.point, here.point),
            torch.where(accepted, there.log_joint, here.log_joint),
            torch.where(accepted, there.log_weight, here.log_weight),
        )
        step_size = nudge_step_size(step_size, accepted.to(step_size).mean(0), ACCEPTANCE)
        above.append(here.log_weight > largest)
    return torch.stack(above[WARM_UP:]).double().mean((0, 1)), here.point
