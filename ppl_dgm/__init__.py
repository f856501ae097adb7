"""Probabilistic programming for deep generative models: fit Pyro programs, ask for their evidence, compare them."""

from ppl_dgm import data, diagnostics, evidence, families, nn, objectives, tasks
from ppl_dgm.compare import Comparison, compare
from ppl_dgm.conditionals import guides
from ppl_dgm.data import Dataset
from ppl_dgm.fitting import Fit, NonFiniteError, fit
from ppl_dgm.program import Program
from ppl_dgm.reporting import plots
from ppl_dgm.reporting.arviz import to_arviz
from ppl_dgm.sampling import kernels
from ppl_dgm.sampling.importance import log_weights, pareto_k
from ppl_dgm.sampling.posterior import Posterior, posterior

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Dataset",
    "Fit",
    "NonFiniteError",
    "Posterior",
    "Program",
    "compare",
    "data",
    "diagnostics",
    "evidence",
    "families",
    "fit",
    "guides",
    "kernels",
    "log_weights",
    "nn",
    "objectives",
    "pareto_k",
    "plots",
    "posterior",
    "tasks",
    "to_arviz",
]
