"""States and modes that outweigh a partition function.

Annealed chains that all miss a mode agree with one another. What they miss shows where the data, or
chains that start elsewhere, find more than the estimate says there is in all.
"""

import math

import torch
from torch import Tensor

from ppl_dgm.evidence.normalising import ladder_to
from ppl_dgm.program import Bound
from ppl_dgm.program.ladder import Ladder
from ppl_dgm.program.supports import is_binary
from ppl_dgm.sampling.climbing import distinct, find_modes
from ppl_dgm.sampling.effort import OverBudgetError
from ppl_dgm.sampling.memory import some_of
from ppl_dgm.sampling.student_mixtures import mode_mixture
from ppl_dgm.sampling.unconstrained import Unconstrained
from ppl_dgm.sampling.weight_summary import WeightSummary

__all__ = ["outweighed_alarm"]

SHOWN_DATA = 128
STARTS, MOVES = 64, 20  # of chains of binary states, from each kind of start
FLIPS = 160  # of each chain, in place of moves, where a move is one flip for each unit
CLIMBED, CLIMBS, MOST_DIMS = 8, 40, 30  # starts of each kind, steps, and dimensions at most
WIDER = (1.0, 3.0, 10.0, 30.0)  # deviations of the base measure, in its own, that climbs start at
DRAWS = 1000  # around the modes
ERRORS, EXCESS = 4.0, 0.02  # standard errors and nats by which a sum of states is above chance
AROUND_MODES = 0.1  # nats by which a sum over draws is


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
        what, found, limit = "states", sum_of_states(ladder, data), EXCESS
    else:
        what, limit = "modes", AROUND_MODES
        found, error = sum_around_modes(Unconstrained(free), latent.name, data)
        limit += ERRORS * error
    excess = float(found - log_z)
    if not excess > limit + ERRORS * float(std_error):
        return ()
    warning = (
        f"some {what} alone outweigh the partition function, by {excess:.3g} nats: the estimator "
        "misses a mode of the density; begin at a base measure that reaches all modes, or use more "
        "temperatures or particles"
    )
    return (warning,)


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


def sum_around_modes(target: Unconstrained, name: str, data: Tensor) -> tuple[Tensor, float]:
    """Integrate a density around the modes that starts climb to.

    Returns the log of an unbiased estimate of what lies there, and its standard error; -inf where
    nothing is found.
    """
    nothing = torch.tensor(-torch.inf), 0.0
    if target.dim > MOST_DIMS:
        return nothing
    base = target.bound.draw_prior(CLIMBED * len(WIDER)).values[name]
    index = torch.linspace(0, len(data) - 1, CLIMBED).round().long().unique()
    points = data[index].to(base).reshape(-1, *base.shape[1:])
    drawn = target.unconstrain({name: base})
    centre = drawn.mean(0)
    wide = base.new_tensor(WIDER).repeat(CLIMBED).reshape(-1, *[1] * centre.dim())
    starts = torch.cat([target.unconstrain({name: points}), centre + wide * (drawn - centre)])
    try:
        modes = find_modes(target, starts, CLIMBS)
        new = distinct(modes)
        if not bool(new.any()):
            return nothing
        mixture = mode_mixture(modes, new)
        draws = mixture.sample(DRAWS)
        with torch.no_grad():
            log_weights = target.log_joint(draws.to(target.dtype)).double() - mixture.log_prob(
                draws
            )
    except OverBudgetError:
        raise
    except Exception:  # whatever an energy raises far out, or without derivatives
        return nothing
    summary = WeightSummary(DRAWS)
    summary.add(log_weights.nan_to_num(nan=-torch.inf))
    return summary.log_mean_exp, float(summary.std_error)
