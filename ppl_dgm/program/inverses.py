"""Flows whose draws do not have the density they claim."""

from typing import Any

import torch

from ppl_dgm.program.supports import innermost

__all__ = ["check_inverse"]

NUM_DRAWS = 64
LARGE_GAP = 0.1  # nats


def check_inverse(name: str, fn: Any) -> None:
    """Refuse a flow whose draws disagree with their density.

    Some flows of zuko find inverses by bisection between fixed bounds. Beyond them a draw is not
    the point whose density was returned with it.

    Raises:
        ValueError: for draws whose two densities differ.
    """
    flow: Any = getattr(innermost(fn), "dist", None)  # inside pyro.contrib.zuko.ZukoToPyro
    if not hasattr(flow, "rsample_and_log_prob"):
        return
    with torch.no_grad():
        draws, claimed = flow.rsample_and_log_prob((NUM_DRAWS,))
        gap = (flow.log_prob(draws) - claimed).abs()
    wrong = ~(gap <= LARGE_GAP)  # NaN too
    if bool(wrong.any()):
        raise ValueError(
            f"draws of site {name!r} do not have the density of its flow: the densities at "
            f"{100 * wrong.double().mean().item():.2g} % of them differ from those they were drawn "
            f"with, by up to {gap.max().item():.3g} nats, as where an inverse is found between "
            "fixed bounds or loses its digits. Standardise the data, run the program in double, or "
            "use a flow with an analytic inverse (zuko.flows.MAF, NSF, RealNVP, NICE)"
        )
