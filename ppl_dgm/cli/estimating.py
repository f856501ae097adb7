"""Estimators by the names they have on the command line."""

from collections.abc import Callable
from typing import Any

from ppl_dgm.cli.loading import CallArguments
from ppl_dgm.evidence import (
    AIS,
    ELBO,
    SMC,
    BridgeSampling,
    Evidence,
    Exact,
    ImportanceSampling,
    Laplace,
    PriorSampling,
    auto,
)

__all__ = ["estimate"]

ESTIMATORS: dict[str, Callable[[int], Callable[..., Evidence]]] = {
    "auto": lambda particles: auto,
    "exact": lambda particles: Exact(),
    "importance": ImportanceSampling,
    "prior": PriorSampling,
    "elbo": ELBO,
    "laplace": lambda particles: Laplace(),
    "ais": lambda particles: AIS(),
    "smc": lambda particles: SMC(),
    "bridge": lambda particles: BridgeSampling(),
}


def estimate(program: Any, given: CallArguments, name: str, particles: int, seed: int) -> Evidence:
    """Estimate the evidence of a program with the named estimator."""
    estimator = ESTIMATORS[name](particles)
    return estimator(program, *given.args, seed=seed, **given.kwargs)
