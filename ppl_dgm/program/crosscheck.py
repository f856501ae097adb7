"""Comparison of our log densities with Pyro's.

They are compared on one trace, site by site.
"""

from typing import Any

import torch

from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.log_densities import sum_sites
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.sites import Site

__all__ = ["unlike_pyro"]

TOLERANCE = 1e-3  # nats, and relative


def unlike_pyro(bound: Bound, guide_trace: Any, model_trace: Any) -> tuple[str, ...]:
    """Find the sites whose loss terms differ from Pyro's.

    Traces of both halves are compared.

    Pyro leaves out what a mask takes out of one half alone; sites that are summed out have no term
    of their own.
    """
    if bound.structure.enumerated:
        return ()
    found: list[str] = []
    for trace in filter(None, (guide_trace, model_trace)):
        with unvalidated():
            trace.compute_log_prob()
        theirs = {name: node.get("log_prob_sum") for name, node in trace.nodes.items()}
        ours = {name: term(bound, site) for name, site in bound._sites(trace).items()}
        found += [name for name, value in ours.items() if unlike(value, theirs[name])]
    return tuple(dict.fromkeys(found))


def term(bound: Bound, site: Site) -> torch.Tensor:
    """Compute the scaled log density of a site.

    It is summed over all data.
    """
    layout = bound.structure.layout(False)
    return torch.as_tensor(sum_sites([site], layout) * layout.datum_scale(site)).sum()


def unlike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two terms differ by more than rounding."""
    same = torch.isclose(one.double(), other.double(), TOLERANCE, TOLERANCE, equal_nan=True)
    return not bool(same)
