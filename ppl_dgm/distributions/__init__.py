"""Densities that torch and Pyro lack."""

from ppl_dgm.distributions.autoregressive import Autoregressive, EqualMixture
from ppl_dgm.distributions.cells import Floored, WithinCell
from ppl_dgm.distributions.discretised import (
    ContinuousBernoulli,
    DiscretisedLogisticMixture,
    OrderStatistics,
)

__all__ = [
    "Autoregressive",
    "ContinuousBernoulli",
    "DiscretisedLogisticMixture",
    "EqualMixture",
    "Floored",
    "OrderStatistics",
    "WithinCell",
]
