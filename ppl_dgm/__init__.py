"""Probabilistic programming for deep generative models: fit Pyro programs, ask for their evidence, compare them."""

from ppl_dgm import data, diagnostics, evidence, families, guides, kernels, nets, objectives, plots, tasks
from ppl_dgm.compare import Comparison, compare
from ppl_dgm.data import Dataset
from ppl_dgm.export import to_arviz
from ppl_dgm.fitting import Fit, NonFiniteError, fit
from ppl_dgm.posterior import Posterior, posterior
from ppl_dgm.program import Program
from ppl_dgm.weights import log_weights, pareto_k

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
    "nets",
    "objectives",
    "pareto_k",
    "plots",
    "posterior",
    "tasks",
    "to_arviz",
]
