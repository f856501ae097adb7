"""Hamiltonian Monte Carlo moves of each datum's latents.

There is one chain for each draw.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_dgm.program.precision import to_double
from ppl_dgm.sampling.chains import POINTS_AT_ONCE, Frame, Splits, adapted_chains
from ppl_dgm.sampling.convergence import acceptance_alarm, divergence_warnings, r_hat_warnings
from ppl_dgm.sampling.importance_resampling import joined
from ppl_dgm.sampling.kernels import HMC
from ppl_dgm.sampling.memory import part_of, spans
from ppl_dgm.sampling.posterior import Posterior
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = [
    "LEAST_CHAINS",
    "LEAST_MOVES",
    "move_draws",
    "move_points",
    "verdict_on",
]

LEAST_MOVES = 20
LEAST_CHAINS = 64  # so that they tell a covariance


class Moved(NamedTuple):
    """Last points of the chains, with their diagnostics.

    Points are `[chains, data, dim]`, diagnostics for each datum, `[data]`.
    """

    points: Tensor
    acceptance: Tensor
    r_hat: Tensor
    divergent: Tensor


def move_draws(
    found: Posterior, num_draws: int, num_moves: int, num_leapfrog: int, memory: int
) -> tuple[Posterior, Mapping[str, Tensor]]:
    """Move each draw of the latents by its own chain.

    Each datum has chains of its own. All data move at once where memory allows. Densities are
    computed in float64; draws keep their precision.

    Half of the moves learn the step size and the covariance of each datum from all its chains;
    acceptance and split R-hat are those of the other half.

    Args:
        found: posterior draws of latents that are continuous and inside the data plate, 64 or more.
        num_draws: draws to return, at most as many as there are.
        num_moves: moves of each chain.
        num_leapfrog: leapfrog steps of a move, at most.
        memory: bytes that evaluating densities may allocate.

    Returns:
        The chains' last points, and `{"acceptance", "r_hat", "divergent"}`, `[data]` each, R-hat
            the largest of
        all coordinates.

    Raises:
        ValueError: for discrete latents.
    """
    dims = {latent.name: latent.batch_dim for latent in found.bound.structure.model_latents}
    bound, parts, values = found.bound.in_double(), [], []
    for start, stop in spans(bound, POINTS_AT_ONCE * found.num_draws, memory):
        draws = {
            name: to_double(draw).narrow(dims[name], start, stop - start)
            for name, draw in found.draws.items()
        }
        space = Unconstrained(part_of(bound, start, stop))
        parts.append(move_points(space, space.unconstrain(draws), num_moves, num_leapfrog))
        values.append(space.constrain(parts[-1].points))
    moved = {
        name: joined([part[name][:num_draws] for part in values], dim).to(found.draws[name])
        for name, dim in dims.items()
    }
    diagnostics, warnings = verdict_on(parts)
    return Posterior(found.bound, moved, warnings=warnings), diagnostics


def verdict_on(parts: list[Moved]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Join the diagnostics of all parts, and warn."""
    acceptance, r_hat, divergent = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("acceptance", "r_hat", "divergent")
    )
    warnings = acceptance_alarm(acceptance) + r_hat_warnings(r_hat)
    warnings += divergence_warnings(divergent)
    return {"acceptance": acceptance, "r_hat": r_hat, "divergent": divergent}, warnings


def move_points(target: Splits, points: Tensor, num_moves: int, num_leapfrog: int) -> Moved:
    """Run chains from points `[chains, data, dim]`."""
    kernel = HMC(num_leapfrog=num_leapfrog)
    frame, half = Frame.axes(points), num_moves // 2
    chains = adapted_chains(kernel, target, frame, points, half, half)
    moved = (chains.points.diff(dim=0) != 0).any(-1).double().mean((0, 1))
    r_hat = chains.draws.diagnostics["r_hat"]
    return Moved(chains.points[-1], moved, r_hat, chains.divergent)
