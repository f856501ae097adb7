"""Search for peaks of the likelihood at ever higher levels."""

import math

import torch
from torch import Tensor

from ppl_dgm.sampling.climbing import Modes, distinct, find_modes, starts_at_once
from ppl_dgm.sampling.importance import log_mean_exp
from ppl_dgm.sampling.kernels.adaptation import nudge_step_size
from ppl_dgm.sampling.smc.constrained import Density, Particles, move
from ppl_dgm.sampling.smc.resampling import resample
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["scouted_modes"]

SCREENED = 16  # prior draws of which one becomes a scout
MOVES, ACCEPTANCE = 4, 0.3
HIGHEST, RANDOM = 1, 12  # starts after each move, and at each level
REMAINING = 1e-3  # share of the evidence above a level at which the search ends
MOST_LEVELS, LEAST_SCOUTS = 200, 16
PLAIN, MOST_STARTS, CLIMBS = 0.125, 512, 40  # plain draws for each scout, starts, and their steps
TRIAL, SLOW = 24, 0.3  # starts that climb first, and the share at modes below which they are slow
MORE_CLIMBS = 200  # steps of slow climbs
MOST_DIMS = 30  # in which moves by differences still find their way
MOST_MODES = 64


@torch.no_grad()
def scouted_modes(target: Unconstrained, num_scouts: int, memory: int) -> Tensor:
    """Search for modes from below, `[found, dim]`.

    Prior draws and the starts of `scouted_starts` climb to optima; the modes of highest evidence
    by Laplace's approximation are returned, those that several starts found twice. There are none
    where each datum has latents of its own, in more than 30 dimensions, or for less than 16 scouts.

    Args:
        target: the density of one data set.
        num_scouts: points at each level of the search.
        memory: bytes that evaluating densities may allocate.
    """
    if target.batch or target.dim > MOST_DIMS or num_scouts < LEAST_SCOUTS:
        return target.origin(1)[:0]
    starts = scouted_starts(target, num_scouts, memory)
    starts = torch.cat([target.sample_prior(math.ceil(PLAIN * num_scouts)), starts])
    starts = starts[torch.randperm(len(starts), device=starts.device)]
    modes = find_modes(target, starts[:TRIAL], CLIMBS)
    if float(modes.valid.double().mean()) < SLOW:  # few that arrive tell more than many that do not
        modes = find_modes(target, modes.point, MORE_CLIMBS)
    else:
        at_once = starts_at_once(target, memory)
        more = find_modes(target, starts[TRIAL:], CLIMBS, at_once)
        modes = Modes(*map(torch.cat, zip(modes, more, strict=True)))
    new = torch.where(distinct(modes, copies=2), modes.log_z, -torch.inf)
    best = new.topk(min(len(new), 2 * MOST_MODES)).indices
    return modes.point[best[new[best] > -torch.inf]]


@torch.no_grad()
def scouted_starts(target: Unconstrained, num_scouts: int, memory: int) -> Tensor:
    r"""Search for starts of climbs, `[starts, dim]`.

    Scouts are draws of the prior above a level of likelihood. The level rises so that half of them
    stay, each of them is doubled and moved by differences of others (nested sampling, Skilling
    2006), until what is above can add little to the evidence. The highest and some random scouts
    of each level are starts: narrow peaks take part from the level on at which they are a share of
    what is above, which tempering does not reach where a wide peak has more mass at all lower
    temperatures.

    A peak is found, with probability $1 - e^{-n b}$, if n points are evaluated at some level and a
    share b of the prior above that level climbs to it: n is about `4 * num_scouts` at each level
    and 16 times `num_scouts` at the lowest. A peak whose basin is less than about 1 / n of the
    prior at all levels is beyond the reach of this search, and of any that evaluates as little.

    Args:
        target: the density of one data set.
        num_scouts: points at each level.
        memory: bytes that evaluating densities may allocate.
    """
    density = Density.of(target, memory)
    scouts = screened(target, density, num_scouts)
    log_mass, floor, step_size = -math.log(SCREENED), -math.inf, scouts.prior.new_ones(1)
    starts = [some_of(scouts, RANDOM)]
    for _ in range(MOST_LEVELS):
        level = scouts.likelihood.median(0).values
        above = scouts.likelihood > level
        floor = max(floor, log_mass + float(log_mean_exp(scouts.likelihood)))
        highest = log_mass + float(scouts.likelihood.max())
        if not (bool(above.any()) and highest > floor + math.log(REMAINING)):
            break
        log_mass += math.log(float(above.double().mean()))
        scouts = scouts.take(resample(torch.where(above, 0.0, -torch.inf)))
        for _ in range(MOVES):
            scouts, acceptance = move(density, scouts, scouts.point, level, step_size)
            step_size = nudge_step_size(step_size, acceptance, ACCEPTANCE)
            starts.append(highest_of(scouts, HIGHEST))
        starts.append(some_of(scouts, RANDOM))
    found = torch.cat(starts)
    return found[torch.randperm(len(found), device=found.device)[:MOST_STARTS]]


def screened(target: Unconstrained, density: Density, num: int) -> Particles:
    """The prior draws of highest likelihood, one of `SCREENED`."""
    drawn = density(target.sample_prior(SCREENED * num).unsqueeze(1))
    return drawn.take(drawn.likelihood.topk(num, 0).indices)


def highest_of(scouts: Particles, num: int) -> Tensor:
    """The points of highest likelihood, `[num, dim]`."""
    return scouts.point[scouts.likelihood[:, 0].topk(num).indices, 0]


def some_of(scouts: Particles, num: int) -> Tensor:
    """Random points, `[num, dim]`."""
    return scouts.point[torch.randint(len(scouts.point), (num,)), 0]
