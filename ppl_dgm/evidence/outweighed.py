"""States and modes that outweigh a partition function.

Chains and particles that all miss a mode agree with one another. What they miss shows where the
data, or climbs and chains that start elsewhere, find more than the estimate says there is in all.
"""

import math

import torch
from torch import Tensor

from ppl_dgm.evidence.normalising import ladder_to
from ppl_dgm.program import Bound
from ppl_dgm.program.ladder import Ladder
from ppl_dgm.program.supports import is_binary
from ppl_dgm.sampling.memory import some_of
from ppl_dgm.sampling.missed_modes import AROUND_MODES, excess_alarm, sum_around_modes
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["outweighed_alarm"]

SHOWN_DATA = 128
STARTS, MOVES = 64, 20  # of chains of binary states, from each kind of start
FLIPS = 160  # of each chain, in place of moves, where a move is one flip for each unit
CLIMBED = 8  # starts of each kind
WIDER = (1.0, 3.0, 10.0, 30.0)  # deviations of the base measure, in its own, that climbs start at
EXCESS = 0.02  # nats by which a sum of states is above chance


def outweighed_alarm(
    bound: Bound, free: Bound, log_z: Tensor, std_error: Tensor
) -> tuple[str, ...]:
    r"""Warn where a part of a density outweighs its integral.

    Of binary data $Z \ge \sum_x f(x)$ over any different states: the data, and those that chains of
    the model visit from the data, from the base measure and from fair coins. Of real data Z is at
    least what importance sampling around the modes finds that are climbed to from data and from a
    base measure up to 30 times as wide, in up to 30 dimensions. Nothing is looked at where each
    datum has its own Z, nor of counts.

    Args:
        bound: the program at its data.
        free: the same program without data.
        log_z: estimate of its log partition function, nats.
        std_error: of `log_z`, nats, same shape.
    """
    if log_z.numel() != 1 or len(free.structure.model_latents) != 1:
        return ()
    (latent,) = free.structure.model_latents
    if latent.discrete and not is_binary(latent.support):
        return ()
    data = some_of(bound, SHOWN_DATA)[0].model_trace().nodes[latent.name]["value"]
    ladder = ladder_to(free) if is_binary(latent.support) else None
    if ladder is not None:
        return excess_alarm("states", sum_of_states(ladder, data) - log_z, std_error, EXCESS)
    target = Unconstrained(free)
    found, own = sum_around_modes(target, lambda: wide_starts(target, latent.name, data))
    return excess_alarm("modes", found - log_z, torch.hypot(own, std_error.double()), AROUND_MODES)


def sum_of_states(ladder: Ladder, data: Tensor) -> Tensor:
    """Sum the weights of different binary states, in logs.

    They are data `[..., *event]` and what chains visit from these, from the base measure and from
    fair coins.
    """
    base = ladder.draw(STARTS)
    point = torch.cat([data.reshape(-1, *base.shape[1:]).to(base), base, coins(base)])
    visited = [point]
    for _ in range(MOVES if ladder.blockwise else math.ceil(FLIPS / base[0].numel())):
        point = ladder.move(point)
        visited.append(point)
    states = torch.cat(visited).unique(dim=0)
    return ladder.log_density(states, 1.0).double().logsumexp(0)


def coins(like: Tensor) -> Tensor:
    """Draw binary states of even odds, of the same shape."""
    return torch.bernoulli(torch.full_like(like, 0.5))


def wide_starts(target: Unconstrained, name: str, data: Tensor) -> Tensor:
    """Choose data and ever wider draws, `[starts, dim]`."""
    base = target.bound.draw_prior(CLIMBED * len(WIDER)).values[name]
    index = torch.linspace(0, len(data) - 1, CLIMBED).round().long().unique()
    points = data[index].to(base).reshape(-1, *base.shape[1:])
    drawn = target.unconstrain({name: base})
    centre = drawn.mean(0)
    wide = base.new_tensor(WIDER).repeat(CLIMBED).reshape(-1, *[1] * centre.dim())
    return torch.cat([target.unconstrain({name: points}), centre + wide * (drawn - centre)])
