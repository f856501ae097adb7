"""Climbing to the modes of densities, and their curvature there."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.sampling.effort import GRADIENT, spend
from ppl_dgm.sampling.line_search import DOUBLINGS, ENOUGH, backtrack, double, starts_of
from ppl_dgm.sampling.memory import allocated_bytes
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = [
    "Modes",
    "climb",
    "climb_likelihood",
    "distinct",
    "find_modes",
    "hessian_of",
    "newton_modes",
    "same_mode",
    "starts_at_once",
    "value_and_slope",
]

HISTORY = 10  # pairs of steps that L-BFGS remembers
BACKTRACKS = 25
SAME_MODE = 0.05  # distance in standard deviations under which two optima are one
SECOND_DERIVATIVES = 4  # times the memory of a gradient
GRADIENT_TOLERANCE = 1e-3  # of the slope left at a mode, in standard deviations
NEWTON_STARTS, NEWTON_STEPS = 64, 20  # at most
FLAT = 1e-6  # least curvature, of that along the coordinates


class Modes(NamedTuple):
    """Optima found from several starts.

    Points are `[starts, *batch, dim]`, and what is known there is `[starts, *batch]`.

    `scale_tril` `[starts, *batch, dim, dim]` is the Cholesky factor of the inverse negative
    Hessian; `valid` tells where the slope vanishes and the curvature is negative in all directions;
    `log_z` is Laplace's value.
    """

    point: Tensor
    log_joint: Tensor
    scale_tril: Tensor
    valid: Tensor
    log_z: Tensor


@torch.enable_grad()
def value_and_slope(log_joint: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log p and its gradient at points.

    Points are `[n, *batch, dim]`; a gradient that is not finite becomes zero.
    """
    spend(point.shape[:-1].numel(), GRADIENT)
    point = point.detach().requires_grad_()
    value = log_joint(point)
    (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach().nan_to_num(nan=-torch.inf), slope.nan_to_num(0.0, 0.0, 0.0)


def climb(
    log_joint: Callable[[Tensor], Tensor], start: Tensor, num_steps: int, at_once: int = 1 << 30
) -> Tensor:
    """Climb to optima from several starts.

    Starts are `[n, *batch, dim]`; `at_once` of them climb together.
    """
    return torch.cat([climb_together(log_joint, part, num_steps) for part in start.split(at_once)])


def climb_likelihood(target: Unconstrained, start: Tensor, num_steps: int) -> Tensor:
    """Climb the likelihood from starts.

    Those that would leave the prior stay.
    """
    end = climb(lambda point: target.split(point).likelihood, start, num_steps)
    with torch.no_grad():
        inside = torch.isfinite(target.log_joint(end))
    return torch.where(inside.unsqueeze(-1), end, start)


def climb_together(log_joint: Callable[[Tensor], Tensor], start: Tensor, num_steps: int) -> Tensor:
    """Climb from all starts together by L-BFGS.

    Backtracking finds the length of each step. Steps whose size is not known from curvature, as in
    convex tails, are doubled as long as they climb more. Several lengths are tried in one run: the
    program takes about as long for one point as for a hundred.

    A start that no longer rises is left where it is: the others go on without it. Nocedal and
    Wright (2006), algorithm 7.4.
    """
    end, rising = start.clone(), torch.arange(len(start), device=start.device)
    point = start
    value, slope = value_and_slope(log_joint, point)
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(num_steps):
        direction = two_loop(slope, pairs)
        ascends = (direction * slope).sum(-1, keepdim=True) > 0
        direction = torch.where(ascends, direction, slope)
        new, new_value, new_slope = step_along(log_joint, point, value, slope, direction, pairs)
        pairs = [*pairs, (new - point, slope - new_slope)][-HISTORY:]
        rose = (new_value > value + 1e-10 * (1 + value.abs())).reshape(len(new), -1).any(1)
        end[rising] = new
        rising, point, value, slope = rising[rose], new[rose], new_value[rose], new_slope[rose]
        pairs = [(s[rose], y[rose]) for s, y in pairs]
        if not len(rising):
            break
    return end


def step_along(
    log_joint: Callable[[Tensor], Tensor],
    point: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one step of each start.

    Returns points, values and slopes.

    The whole step is tried with its slope, which many starts can keep; the others alone are run
    again.
    """
    first = not pairs  # a first step is of unit length at most
    length = 1 / slope.norm(dim=-1).clamp_min(1.0) if first else torch.ones_like(value)
    promise = (direction * slope).sum(-1)
    new = point + length.unsqueeze(-1) * direction
    new_value, new_slope = value_and_slope(log_joint, new)
    low = new_value < value + ENOUGH * length * promise
    uncurved = (curvature(*pairs[-1]) == 0)[..., 0] if pairs else torch.ones_like(low)
    changed = low.clone()
    if len(rows := starts_of(low)):
        half = length[rows] / 2, promise[rows], DOUBLINGS if first else BACKTRACKS
        shorter, found = backtrack(log_joint, point[rows], value[rows], direction[rows], *half)
        new[rows] = torch.where(low[rows].unsqueeze(-1), shorter, new[rows])
        new_value[rows] = torch.where(low[rows], found, new_value[rows])
    if len(rows := starts_of(uncurved)):
        longer, found = double(log_joint, point[rows], new[rows], new_value[rows])
        higher = uncurved[rows] & (found > new_value[rows])
        new[rows] = torch.where(higher.unsqueeze(-1), longer, new[rows])
        changed[rows] |= higher
    if len(rows := starts_of(changed)):
        new_value[rows], new_slope[rows] = value_and_slope(log_joint, new[rows])
    return new, new_value, new_slope


def two_loop(slope: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute the L-BFGS direction by the two-loop recursion.

    It uses remembered steps and changes of slope, and skips pairs without curvature.
    """
    direction, coefficients = slope, []
    usable = [(s, y, curvature(s, y)) for s, y in pairs]
    for s, y, rho in reversed(usable):
        alpha = rho * (s * direction).sum(-1, keepdim=True)
        coefficients.append(alpha)
        direction = direction - alpha * y
    if usable:
        s, y, rho = usable[-1]
        shrink = 1 / (rho * y.square().sum(-1, keepdim=True)).clamp_min(torch.finfo(y.dtype).tiny)
        direction = direction * torch.where(rho > 0, shrink, 1.0)
    for (s, y, rho), alpha in zip(usable, reversed(coefficients), strict=True):
        direction = direction + s * (alpha - rho * (y * direction).sum(-1, keepdim=True))
    return direction


def curvature(s: Tensor, y: Tensor) -> Tensor:
    """Compute inverse curvatures, `[n, *batch, 1]`.

    They are 1 / (s'y) where it is safely positive, else 0.
    """
    product = (s * y).sum(-1, keepdim=True)
    safe = product > 1e-12 * s.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True)
    return torch.where(safe, 1 / product, 0.0).nan_to_num(0.0, 0.0, 0.0)


@torch.enable_grad()
def hessian_of(
    log_joint: Callable[[Tensor], Tensor], point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log p, its gradient and its Hessian.

    The Hessian is `[n, *batch, dim, dim]`; it takes one backward pass for each coordinate, all data
    at once. Entries that are undefined, as second derivatives of logaddexp far out, are differences
    of slopes.
    """
    spend(point.numel(), GRADIENT)
    point = point.detach().requires_grad_()
    value = log_joint(point)
    (slope,) = torch.autograd.grad(value.sum(), point, create_graph=True)
    rows = [
        torch.autograd.grad(slope[..., i].sum(), point, retain_graph=True, materialize_grads=True)[
            0
        ]
        for i in range(point.shape[-1])
    ]
    hessian = torch.stack(rows, -2).detach()
    defined = torch.isfinite(hessian)
    if not bool(defined.all()):
        hessian = torch.where(defined, hessian, slope_differences(log_joint, point.detach()))
    return value.detach(), slope.detach(), hessian


def slope_differences(log_joint: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Central differences of slopes, `[n, *batch, dim, dim]`."""
    size = torch.finfo(point.dtype).eps ** (1 / 3) * point.abs().clamp_min(1.0)
    rows = []
    for step in torch.diag_embed(size).unbind(-2):
        above, below = (value_and_slope(log_joint, point + s)[1] for s in (step, -step))
        rows.append((above - below) / (2 * step.sum(-1, keepdim=True)))
    return torch.stack(rows, -2)


def find_modes(
    target: Unconstrained, starts: Tensor, num_steps: int, at_once: int = 1 << 30
) -> Modes:
    """Find modes and a normal approximation at each.

    Each start climbs to an optimum.
    """
    point = climb(target.log_joint, starts, num_steps, at_once)
    return curvatures(target, point, at_once)


def curvatures(target: Unconstrained, point: Tensor, at_once: int) -> Modes:
    """Find which points are modes, and the curvature there."""
    parts = [hessian_of(target.log_joint, part) for part in point.split(at_once)]
    value, slope, hessian = (torch.cat(part) for part in zip(*parts, strict=True))
    precision = -0.5 * (hessian + hessian.mT).double()
    factor, info = torch.linalg.cholesky_ex(precision.nan_to_num(0.0))
    concave = info == 0
    factor = torch.where(concave[..., None, None], factor, torch.eye(target.dim).to(factor))
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(target.dim).to(factor).expand_as(factor), upper=False
    )
    scaled = torch.linalg.solve_triangular(factor, slope.double().unsqueeze(-1), upper=False)
    slope_left = scaled.square().sum((-2, -1)).sqrt()
    flat = slope_left < GRADIENT_TOLERANCE * math.sqrt(target.dim)
    valid = concave & flat & torch.isfinite(value)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_z = value.double() + 0.5 * target.dim * math.log(2 * math.pi) - log_det
    scale_tril = torch.linalg.cholesky_ex(inverse.mT @ inverse).L
    return Modes(point, value.double(), scale_tril, valid, torch.where(valid, log_z, -torch.inf))


def newton_modes(target: Unconstrained, modes: Modes, at_once: int = 1 << 30) -> Modes:
    """Go on from where climbs have ended.

    The first 64 starts go by Newton's steps, which scales of coordinates do not slow.
    """
    slow, rest = modes.point[:NEWTON_STARTS], modes.point[NEWTON_STARTS:]
    ends = [newton(target.log_joint, part) for part in slow.split(at_once)]
    return curvatures(target, torch.cat([*ends, rest]), at_once)


def newton(log_joint: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    r"""Climb by Newton's steps from points `[n, *batch, dim]`.

    The direction is $|H|^{-1} g$, of the Hessian's eigenvalues in coordinates that make its
    diagonal one the absolute ones: it ascends also where the density is not concave.
    """
    last = point.new_full(point.shape[:-1], -torch.inf)
    for _ in range(NEWTON_STEPS):
        value, slope, hessian = hessian_of(log_joint, point)
        if not bool((value > last + 1e-10 * (1 + value.abs())).any()):
            break
        unit = hessian.diagonal(dim1=-2, dim2=-1).abs().double().rsqrt()
        unit = torch.where(unit.isfinite(), unit, 1.0)
        scaled = (0.5 * (hessian + hessian.mT) * unit.unsqueeze(-1) * unit.unsqueeze(-2)).double()
        values, vectors = torch.linalg.eigh(scaled.nan_to_num(0.0, 0.0, 0.0))
        along = (vectors.mT @ (unit * slope.nan_to_num(0.0, 0.0, 0.0)).unsqueeze(-1)).squeeze(-1)
        step = vectors @ (along / values.abs().clamp_min(FLAT)).unsqueeze(-1)
        direction = (unit * step.squeeze(-1)).to(point)
        last, whole, promise = value, torch.ones_like(value), (direction * slope).sum(-1)
        point, _ = backtrack(log_joint, point, value, direction, whole, promise, BACKTRACKS)
    return point


def starts_at_once(target: Unconstrained, memory: int) -> int:
    """Starts whose densities with second derivatives fit into memory."""
    one = target.origin(1)
    row = allocated_bytes(lambda: value_and_slope(target.log_joint, one))
    return max(1, int(memory / (SECOND_DERIVATIVES * row + 1)))


def same_mode(modes: Modes) -> Tensor:
    """Check which starts have ended at the same mode.

    Entry `[i, j, *batch]` tells whether start j has ended at the mode of start i.
    """
    difference = modes.point.unsqueeze(0) - modes.point.unsqueeze(1)  # [i, j, *batch, dim]: j - i
    scales = modes.scale_tril.square().sum(-1).sqrt()
    near = ((difference / scales.unsqueeze(1)).abs().amax(-1) < SAME_MODE) & modes.valid.unsqueeze(
        1
    )
    return near & modes.valid.unsqueeze(0)


def distinct(modes: Modes, copies: int = 1) -> Tensor:
    """Check which optima are new modes: `[starts, *batch]`.

    A mode is new if fewer than `copies` earlier starts have found it.
    """
    near = same_mode(modes)
    earlier = torch.ones(len(near), len(near), device=near.device).triu(1).bool()
    seen = (near & earlier.reshape(earlier.shape + (1,) * (near.dim() - 2))).sum(0)
    return modes.valid & (seen < copies)
