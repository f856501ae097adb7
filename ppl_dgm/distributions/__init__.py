"""Densities that torch and Pyro lack."""

from ppl_dgm.distributions.discretised import (
    Autoregressive,
    ContinuousBernoulli,
    DiscretisedLogisticMixture,
    OrderStatistics,
)

__all__ = ["Autoregressive", "ContinuousBernoulli", "DiscretisedLogisticMixture", "OrderStatistics"]
