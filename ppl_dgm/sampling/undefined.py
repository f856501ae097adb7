"""Draws and places near the posterior whose density is NaN."""

import torch
from torch import Tensor

from ppl_dgm.program import Bound
from ppl_dgm.program.particles import Values
from ppl_dgm.program.seeding import seeded
from ppl_dgm.sampling.chains import evaluate
from ppl_dgm.sampling.differences import propose_by_differences
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.unconstrained import Unconstrained

__all__ = ["MOST_POINTS", "undefined_alarm", "undefined_draws"]

MOST_POINTS, LEAST_POINTS = 512, 16
MOST_NUMBERS = 50_000_000  # observed, at all points
STEP = 0.3  # of the moves, in standard deviations about
MATERIAL, LEAST_SEEN = 0.01, 3  # share and number of points that are no chance


def undefined_alarm(target: Unconstrained, points: Tensor, memory: int = MEMORY) -> tuple[str, ...]:
    """Warn where densities are NaN in the posterior's neighbourhood.

    Samplers take such places for impossible and never stay there: points of the posterior are moved
    by differences of others to see them. Generators are left as they were.

    Args:
        target: the density.
        points: of the posterior, about, `[n, *batch, dim]`.
        memory: bytes that evaluating densities may allocate.
    """
    with torch.no_grad(), seeded(0, target.device):
        most = max(LEAST_POINTS, min(MOST_POINTS, MOST_NUMBERS // max(1, target.bound.num_dims)))
        few = points[torch.randperm(len(points), device=points.device)[:most]]
        moved = propose_by_differences(few, few, STEP).to(points.dtype)

        def is_undefined(part: Tensor) -> Tensor:
            return target.raw_split(part).total.isnan().double()

        undefined = evaluate(is_undefined, moved, memory) > 0
        share = float(undefined.double().mean())
        if share <= max(MATERIAL, LEAST_SEEN / len(moved)):
            return ()
        shown = moved[undefined.reshape(len(moved), -1).any(-1)][:1]
        one = {name: value[0] for name, value in target.constrain(shown).items()}
        return (_warning(target.bound, one, share, "points near the posterior"),)


def undefined_draws(bound: Bound, values: Values, log_density: Tensor) -> tuple[str, ...]:
    """Warn of draws whose log density is NaN.

    Args:
        bound: the program at its data.
        values: latents, `[particles, *shape]` by site.
        log_density: theirs, `[particles]` or `[particles, data]`.
    """
    undefined = log_density.isnan().reshape(len(log_density), -1).any(-1)
    if not bool(undefined.any()):
        return ()
    one = {name: value[undefined][0] for name, value in values.items()}
    return (_warning(bound, one, float(undefined.double().mean()), "the draws"),)


def _warning(bound: Bound, values: Values, share: float, where: str) -> str:
    """Name the sites whose density is NaN there."""
    sites = bound.undefined_sites(values)
    place = f"at the sites {sites}" if sites else "in the guide"
    return (
        f"the log density is NaN at {100 * share:.2g} % of {where}, {place}; they count as "
        "impossible. Compute it with torch.xlogy, logits or log_softmax"
    )
