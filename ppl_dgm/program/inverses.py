"""Flows whose draws do not have the density they claim."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from ppl_dgm.program.supports import innermost
from ppl_dgm.transforms import FlowDistribution
from ppl_dgm.transforms.bijection import is_foreign, may_fold, pull, push
from ppl_dgm.transforms.distribution import few_noise

__all__ = ["check_inverse", "cure", "lost_share"]

NUM_DRAWS = 64
LARGE_GAP = 0.1  # nats
FAR = 0.01  # of the spread, at which a point is another one
FINER = (
    "its steps through time are too few for the field that it has learned. Fit it with more "
    "num_steps, a smaller rate, or more fields in a row (length)"
)
OURS = (
    "one of its transforms is only about the inverse of its inverse, as a series that ends early "
    "(Pyro's MatrixExponential). Take one of ppl_dgm.transforms, e.g. LULinear"
)


def check_inverse(name: str, fn: Any) -> None:
    """Refuse a flow whose draws disagree with their density.

    Some flows of zuko find inverses by bisection between fixed bounds. Beyond them a draw is not
    the point whose density was returned with it. Continuous flows of few steps may have no inverse.

    Raises:
        ValueError: for draws whose two densities differ, or that have other noise.
    """
    inner = innermost(fn)
    if is_flow(inner):
        check_noise(name, inner)
        return
    flow: Any = getattr(inner, "dist", None)  # inside pyro.contrib.zuko.ZukoToPyro
    if not hasattr(flow, "rsample_and_log_prob"):
        return
    with torch.no_grad():
        draws, claimed = flow.rsample_and_log_prob((NUM_DRAWS,))
        gap = (flow.log_prob(draws) - claimed).abs()
    wrong = ~(gap <= LARGE_GAP)  # NaN too
    if bool(wrong.any()):
        raise ValueError(
            f"draws of site {name!r} do not have the density of its flow: the densities at "
            f"{100 * wrong.double().mean().item():.3g} % of them differ from those they were drawn "
            f"with, by up to {gap.max().item():.3g} nats, as where an inverse is found between "
            "fixed bounds or loses its digits. Standardise the data, run the program in double, or "
            "use a flow with an analytic inverse (zuko.flows.MAF, NSF, RealNVP, NICE)"
        )


def is_flow(fn: Any) -> bool:
    """Check for flows of ours and flows that may fold."""
    transformed = isinstance(fn, TransformedDistribution)
    return isinstance(fn, FlowDistribution) or (transformed and may_fold(fn.transforms))


@torch.no_grad()
def check_noise(name: str, flow: TransformedDistribution) -> None:
    """Refuse a flow whose draws lead back to other noise."""
    if not may_fold(flow.transforms):
        return
    noise = few_noise(flow, NUM_DRAWS)
    x, _ = push(flow.transforms, noise, len(flow.base_dist.event_shape))
    back, _ = pull(flow.transforms, x, len(flow.event_shape))
    share = far_share(back, noise, noise, len(flow.base_dist.event_shape))
    if share > 0:
        raise ValueError(
            f"draws of site {name!r} do not have the density of its flow: {100 * share:.3g} % of "
            f"them lead back to other noise than they were made of, as {FINER}"
        )


def cure(fn: Any) -> str:
    """Why a flow's inverse misses values, and what helps."""
    return FINER if may_fold(innermost(fn).transforms) else OURS


@torch.no_grad()
def lost_share(fn: Any, value: Tensor) -> float:
    """Share of values that a flow's inverse misses.

    The density of the others integrates to one at most; theirs comes on top. Zero for
    distributions that are no flows, or whose inverse is certain.
    """
    flow = innermost(fn)
    if not is_flow(flow):
        return 0.0
    if not (may_fold(flow.transforms) or any(map(is_foreign, flow.transforms))):
        return 0.0
    noise, _ = pull(flow.transforms, value, len(flow.event_shape))
    back, _ = push(flow.transforms, noise, len(flow.base_dist.event_shape))
    draws, _ = push(flow.transforms, few_noise(flow, NUM_DRAWS), len(flow.base_dist.event_shape))
    return far_share(back, value, draws, len(flow.event_shape))


def far_share(found: Tensor, expected: Tensor, draws: Tensor, event_dim: int) -> float:
    """Share of events that are not where they are expected.

    Distances are in spreads of draws `[n, ...]`.
    """
    centre = draws.median(0).values
    spread = (draws - centre).abs().median(0).values
    rounding = 64 * torch.finfo(found.dtype).eps * expected.abs()
    near = (found - expected).abs() <= FAR * spread + rounding  # false for NaN
    return 1 - near.flatten(-event_dim).all(-1).double().mean().item()
