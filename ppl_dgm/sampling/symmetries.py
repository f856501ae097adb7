"""Search for mirrored modes of the posterior.

Modes are mirrored by sign flips and label permutations that leave the joint density (nearly)
unchanged.

Factor models, mixtures and neural nets have posteriors of several modes that are each other's
images. A chain finds one of them and its diagnostics are silent. Here every flip of a run of
entries of a real latent, and every swap of two labels, is tried on posterior draws as a Metropolis
move: those that are accepted are reported, and used to move the draws between the modes in the
right proportion.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.program.particles import Values
from ppl_dgm.program.supports import is_real
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["try_mirrors"]

MAX_RUNS = 64  # sign flips that are tried for one latent
MAX_LABELS = 8
NUM_TRIED = 32  # draws on which each move is tried
ACCEPTED = 0.02  # mean acceptance of an image that counts as a mode
APART = (
    2.5  # mean over spread of the distance to the image; 1.3 for one normal mode around the mirror
)
SWEEPS = 3


class Move(NamedTuple):
    """An involution of latent values that preserves volume."""

    name: str
    apply: Callable[[Values], Values]


class Mirrors(NamedTuple):
    """Draws moved between modes, and the accepted moves.

    Draws are `[n, *batch, dim]`. `accepted` has the acceptance of each move that leads to a mode.
    """

    points: Tensor
    accepted: dict[str, float]


def moves_of(target: Unconstrained, values: Values) -> Iterator[Move]:
    """Yield all sign flips and label swaps to try."""
    latents = [slot.latent for slot in target.slots if is_real(slot.latent.support)]
    real = [latent.name for latent in latents]
    for latent in latents:
        yield Move(f"-{latent.name}", flip_both(latent.name, latent.name))
        if latent.event_dim:
            yield from flips(latent.name, values[latent.name].shape[-1])
    for first, second in combinations(real, 2):
        yield Move(f"-{first}, -{second}", flip_both(first, second))
    yield from swaps(target, values)


def flips(name: str, size: int) -> Iterator[Move]:
    """Yield sign flips of runs of neighbouring entries.

    The runs are along the last dimension, the longest last.
    """
    runs = [
        (start, start + length) for length in range(1, size) for start in range(size - length + 1)
    ]
    for start, stop in runs[:MAX_RUNS]:
        yield Move(f"-{name}[..., {start}:{stop}]", flip_run(name, start, stop))


def flip_run(name: str, start: int, stop: int) -> Callable[[Values], Values]:
    """Flip the signs of some entries along the last dimension."""

    def apply(values: Values) -> Values:
        value = values[name].clone()
        value[..., start:stop] *= -1
        return values | {name: value}

    return apply


def flip_both(first: str, second: str) -> Callable[[Values], Values]:
    """Build a function that flips the signs of latents.

    It flips one latent, or two at once, as loadings and factors allow.
    """
    return lambda values: values | {first: -values[first], second: -values[second]}


def swaps(target: Unconstrained, values: Values) -> Iterator[Move]:
    """Yield swaps of two labels.

    Swapped are all latents at once that have an event dimension of as many entries.
    """
    sizes: dict[int, list[str]] = {}
    for slot in target.slots:
        if slot.latent.event_dim and 1 < values[slot.latent.name].shape[-1] <= MAX_LABELS:
            sizes.setdefault(values[slot.latent.name].shape[-1], []).append(slot.latent.name)
    for size, names in sizes.items():
        for i, j in combinations(range(size), 2):
            yield Move(f"swap {i} and {j} of {', '.join(names)}", swap(names, size, i, j))


def swap(names: list[str], size: int, first: int, second: int) -> Callable[[Values], Values]:
    """Exchange two entries along the last dimension of some latents."""
    order = list(range(size))
    order[first], order[second] = second, first
    return lambda values: values | {name: values[name][..., order] for name in names}


def try_mirrors(target: Unconstrained, points: Tensor, memory: int) -> Mirrors:
    """Find mirrored modes and move draws between them.

    Every move is tried on a few draws first. Those that are accepted then move all draws.

    Args:
        target: the density.
        points: posterior draws `[n, *batch, dim]`.
        memory: bytes that evaluating densities may allocate.
    """
    few = points[torch.randperm(points.shape[0], device=points.device)[:NUM_TRIED]]
    moves = list(moves_of(target, target.constrain(few)))
    rates = acceptance_of(target, few, moves, memory)
    useful = [move for move, rate in zip(moves, rates, strict=True) if rate > ACCEPTED]
    found = {move.name: rate for move, rate in zip(moves, rates, strict=True) if rate > ACCEPTED}
    for _ in range(SWEEPS if useful else 0):
        for move in useful:
            points = metropolis(target, points, move, memory)
    return Mirrors(points, found)


def acceptance_of(
    target: Unconstrained, points: Tensor, moves: list[Move], memory: int
) -> list[float]:
    """Estimate the mean acceptance of each move.

    It is that of the datum that accepts most, and 0 where the image is not another cloud of points.
    """
    if not moves:
        return []
    images = torch.stack([reflect(target, points, move) for move in moves])
    here = own_density(target, points, memory)
    there = own_density(target, images.flatten(0, 1), memory).unflatten(0, images.shape[:2])
    rates = (there - here).exp().clamp_max(1.0).nan_to_num(0.0).mean(1)
    separate = torch.stack([apart(points, image) for image in images])
    return (rates * separate).reshape(len(moves), -1).amax(1).tolist()


def reflect(target: Unconstrained, points: Tensor, move: Move) -> Tensor:
    """Images of points `[n, *batch, dim]`."""
    return target.unconstrain(move.apply(target.constrain(points)))


def apart(points: Tensor, image: Tensor) -> Tensor:
    """Check whether the image is a separate cloud of points.

    Otherwise it is the same cloud turned. The result is `[*batch]`.
    """
    distance = (image - points).abs()
    ratio = distance.mean(0) / (distance.std(0) + torch.finfo(points.dtype).tiny)
    return (ratio > APART).any(-1)


def own_density(target: Unconstrained, points: Tensor, memory: int) -> Tensor:
    """Compute log p(x, z) in the latents' own space.

    The Jacobian of the transform is left out. The result is `[n, *batch]`.
    """
    return evaluate(
        lambda part: target.bound.log_joint(target.constrain(part)).total, points, memory
    )


def metropolis(target: Unconstrained, points: Tensor, move: Move, memory: int) -> Tensor:
    """Move draws to their images by a Metropolis step.

    The image is proposed half the time, so that draws settle in the modes in the right proportion.
    """
    image = reflect(target, points, move)
    log_ratio = own_density(target, image, memory) - own_density(target, points, memory)
    accept = (torch.rand_like(log_ratio).log() < log_ratio) & (torch.rand_like(log_ratio) < 0.5)
    return torch.where(accept.unsqueeze(-1), image, points)
