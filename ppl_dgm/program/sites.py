"""Roles of the sites in a trace.

They tell which sites a program has, and what each contributes to a log density.
"""

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
from pyro.poutine.subsample_messenger import _Subsample

from ppl_dgm.program.supports import innermost

__all__ = [
    "Site",
    "is_auxiliary",
    "is_deterministic",
    "is_drawn",
    "is_enumerated",
    "is_factor",
    "is_point_mass",
    "is_random_subsample",
    "is_subsample",
    "is_summed_out",
    "placed_sites",
    "random_sites",
]

Site = dict[str, Any]


def is_subsample(site: Site) -> bool:
    """Whether the site is the index set of a plate."""
    return isinstance(site["fn"], _Subsample)


def is_random_subsample(site: Site) -> bool:
    """Check whether the site's plate draws a random subsample."""
    return is_subsample(site) and site["fn"].subsample_size not in (None, site["fn"].size)


def is_point_mass(site: Site) -> bool:
    """Whether the site is drawn from a Delta."""
    return isinstance(innermost(site["fn"]), dist.Delta)


def is_deterministic(site: Site) -> bool:
    """Whether the site is a `pyro.deterministic` statement."""
    return bool(site["infer"].get("_deterministic"))


def is_factor(site: Site) -> bool:
    """Whether the site is a `pyro.factor` statement."""
    return innermost(site["fn"]).__class__.__name__ == "Unit"


def is_auxiliary(site: Site) -> bool:
    """Check whether the site is noise of the guide alone.

    Pyro marks factors as auxiliary too, and programs what a guide observes. They are not counted
    here.
    """
    marked = bool(site["infer"].get("is_auxiliary"))
    return marked and not site["is_observed"] and not is_factor(site)


def is_enumerated(site: Site) -> bool:
    """Whether the site asks to be summed out in parallel."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_summed_out(site: Site) -> bool:
    """Check whether the site enumerates all values of its variable.

    The values lie along a dimension of their own.
    """
    return not site["is_observed"] and site["infer"].get("_enumerate_dim") is not None


def is_drawn(site: Site) -> bool:
    """Whether the site is a latent that holds one value."""
    return not site["is_observed"] and not is_summed_out(site)


def random_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """Yield names and sites that carry a log density."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_subsample(site) and not is_deterministic(site):
            yield name, site


def placed_sites(trace: Any) -> list[Site]:
    """Return the sites that tell where data are.

    They are those with a log density, or where a program draws nothing the deterministic ones.
    """
    random = [site for _, site in random_sites(trace)]
    return random or [
        site for site in trace.nodes.values() if site["type"] == "sample" and is_deterministic(site)
    ]
