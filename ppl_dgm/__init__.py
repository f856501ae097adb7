"""Probabilistic programming for deep generative models on Pyro.

Fit Pyro programs, estimate their evidence, and compare them.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ppl_dgm.environment import __version__ as __version__

if TYPE_CHECKING:
    from ppl_dgm import compression, data, diagnostics, evidence, families, nn, objectives, tasks
    from ppl_dgm.amortisation import amortisation_gap, refine
    from ppl_dgm.comparison import Comparison, compare
    from ppl_dgm.conditionals import guides
    from ppl_dgm.data import Dataset
    from ppl_dgm.fitting import Fit, NonFiniteError, fit
    from ppl_dgm.program import Program
    from ppl_dgm.reporting import plots
    from ppl_dgm.reporting.arviz import to_arviz
    from ppl_dgm.sampling import kernels
    from ppl_dgm.sampling.importance import log_weights
    from ppl_dgm.sampling.importance_resampling import posterior
    from ppl_dgm.sampling.posterior import Posterior
    from ppl_dgm.sampling.weight_summary import pareto_k

__all__ = [
    "Comparison",
    "Dataset",
    "Fit",
    "NonFiniteError",
    "Posterior",
    "Program",
    "amortisation_gap",
    "compare",
    "compression",
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
    "refine",
    "tasks",
    "to_arviz",
]

# Names are imported when they are first used (PEP 562): who fits need not wait for plots or tables.
_HOMES = {
    "Comparison": "comparison:Comparison",
    "Dataset": "data:Dataset",
    "Fit": "fitting:Fit",
    "NonFiniteError": "fitting:NonFiniteError",
    "Posterior": "sampling.posterior:Posterior",
    "Program": "program:Program",
    "amortisation_gap": "amortisation:amortisation_gap",
    "compare": "comparison:compare",
    "fit": "fitting:fit",
    "guides": "conditionals.guides",
    "kernels": "sampling.kernels",
    "log_weights": "sampling.importance:log_weights",
    "pareto_k": "sampling.weight_summary:pareto_k",
    "plots": "reporting.plots",
    "posterior": "sampling.importance_resampling:posterior",
    "refine": "amortisation:refine",
    "to_arviz": "reporting.arviz:to_arviz",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ppl_dgm' has no attribute {name!r}")
    found = resolve_name(f"ppl_dgm.{_HOMES.get(name, name)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
