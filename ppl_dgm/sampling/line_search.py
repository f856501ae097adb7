"""Lengths of the steps of climbs.

Several are tried in one run of a program, which takes about as long for one point as for a hundred.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ppl_dgm.sampling.effort import spend

__all__ = ["DOUBLINGS", "ENOUGH", "backtrack", "double", "starts_of"]

DOUBLINGS = 60
TURNS = (2, 4, *[8] * 10)  # lengths of a step that are tried in one run
ENOUGH = 1e-4  # share of the promised rise that a step must have


@torch.no_grad()
def backtrack(
    log_joint: Callable[[Tensor], Tensor],
    point: Tensor,
    value: Tensor,
    direction: Tensor,
    length: Tensor,
    promise: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Shorten each step until it climbs enough.

    Returns points and their values.

    Enough is what Armijo's rule asks, `promise` the rise per length. A start stays where none of
    the most halvings does.
    """
    best, highest = point.clone(), value.clone()
    rows = torch.arange(len(point), device=point.device)
    done = torch.zeros_like(value, dtype=torch.bool)
    for powers in in_turns(most, value):
        lengths = length[rows] * 0.5**powers
        trial = point[rows] + lengths.unsqueeze(-1) * direction[rows]
        found = values_of(log_joint, trial)
        good = (found >= value[rows] + ENOUGH * lengths * promise[rows]) & ~done[rows]
        longest = good.int().argmax(0, keepdim=True)  # the first that is good enough
        take(best, highest, rows, good.any(0), trial, found, longest)
        done[rows] |= good.any(0)
        rows = starts_of(~done)
        if not len(rows):
            break
    return best, highest


@torch.no_grad()
def double(
    log_joint: Callable[[Tensor], Tensor], point: Tensor, end: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Double steps as long as their ends climb.

    Returns ends and their values.
    """
    step, end, highest = end - point, end.clone(), value.clone()
    rows = torch.arange(len(point), device=point.device)
    for powers in in_turns(DOUBLINGS, value):
        trial = point[rows] + step[rows] * 2.0 ** (1 + powers).unsqueeze(-1)
        found = values_of(log_joint, trial)
        best = found.argmax(0, keepdim=True)
        higher = found.gather(0, best)[0] > highest[rows]
        take(end, highest, rows, higher, trial, found, best)
        rows = rows[starts_of(higher)]
        if not len(rows):
            break
    return end, highest


def in_turns(most: int, like: Tensor) -> Iterator[Tensor]:
    """Yield the powers from 0, few and then more.

    They are `[powers, 1, ...]`.

    Those of one turn are tried in one run of the program. Eight values take the memory that second
    derivatives take.
    """
    powers = torch.arange(most, device=like.device).to(like).reshape(-1, *[1] * like.dim())
    for count in TURNS:
        if not len(powers):
            return
        yield powers[:count]
        powers = powers[count:]


def take(
    point: Tensor,
    value: Tensor,
    rows: Tensor,
    found: Tensor,
    trial: Tensor,
    values: Tensor,
    place: Tensor,
) -> None:
    """Write the trials that were found to their rows.

    `place` is which trial it is.
    """
    chosen = trial.gather(0, place.unsqueeze(-1).expand_as(trial[:1]))[0]
    point[rows] = torch.where(found.unsqueeze(-1), chosen, point[rows])
    value[rows] = torch.where(found, values.gather(0, place)[0], value[rows])


def values_of(log_joint: Callable[[Tensor], Tensor], trial: Tensor) -> Tensor:
    """Compute log densities of trials in one run.

    Trials are `[trials, n, *batch, dim]`.
    """
    spend(trial.shape[:-1].numel())
    found = log_joint(trial.flatten(0, 1)).nan_to_num(nan=-torch.inf)
    return found.reshape(trial.shape[:-1])


def starts_of(marked: Tensor) -> Tensor:
    """Find the starts marked `[n, *batch]` at some datum."""
    return marked.reshape(len(marked), -1).any(1).nonzero()[:, 0]
