"""Log-likelihoods of each datum, also with shared latents.

Leave-one-out validation asks for them.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ppl_dgm.program.bound_program import PARTICLE_PLATE, Bound
from ppl_dgm.program.enumeration import split_enumerated
from ppl_dgm.program.log_densities import log_prob_of
from ppl_dgm.program.particles import Values
from ppl_dgm.program.sites import Site, random_sites

__all__ = ["log_likelihoods"]


def log_likelihoods(bound: Bound, values: Values) -> Values:
    """Compute the log-likelihood of each datum at every site.

    It is log p(x_i | z) of every observed site at latent values `[particles, *shape]`, masked but
    not scaled.

    Where discrete latents are summed out they tie the observed sites of a datum together; then the
    result is their joint density, under their names joined by `+`, or nothing if one of those sites
    is outside the data plate.

    Returns:
        Nats, `{site: [particles, *plates]}`: event dimensions are summed, plates are kept.
    """
    structure, names = bound.structure, bound.structure.observed
    if not structure.enumerated:
        once = lambda given, particles: site_log_probs(bound, given, particles)  # noqa: E731
    elif all(in_data_plate(bound, name) for name in (*names, *structure.enumerated)):
        key = "+".join(names)
        once = lambda given, particles: {key: joint_log_prob(bound, given, particles)}  # noqa: E731
    else:
        return {}
    return bound._map(once, values, structure.model_runs)


def site_log_probs(bound: Bound, values: Values, particles: int | None) -> Values:
    """Log densities of the observed sites of one run."""
    trace = bound._trace(bound.model, values, particles)
    observed = {
        name: site for name, site in random_sites(trace) if name in bound.structure.observed
    }
    lead = int(particles is not None) * (1 + bound.structure.nesting)
    return {name: own_plates(log_prob_of(site, 1.0), site, lead) for name, site in observed.items()}


def own_plates(log_prob: Tensor, site: Site, lead: int) -> Tensor:
    """Drop the plate dimensions that a site lacks.

    They are singletons. `lead` counts the dimensions of all plates.
    """
    own = max(
        (
            -f.dim
            for f in site["cond_indep_stack"]
            if f.dim is not None and f.name != PARTICLE_PLATE
        ),
        default=0,
    )
    return log_prob.reshape(log_prob.shape[:1] + log_prob.shape[lead - own :]) if lead else log_prob


def joint_log_prob(bound: Bound, values: Values, particles: int | None) -> Any:
    """Compute the data's log density given the drawn latents.

    It is `[particles, data]`, with enumerated latents summed out.
    """
    trace = bound._trace(bound.model, values, particles, enumerate_=True)
    layout = replace(bound.structure.layout(particles is not None), per_datum=True)
    local = [site for _, site in random_sites(trace) if layout.data_frame(site) is not None]
    return split_enumerated(trace, local, layout)[1]


def in_data_plate(bound: Bound, name: str) -> bool:
    """Return whether a site is in a vectorised data plate."""
    frame = bound.structure.layout(False).data_frame(bound.model_trace().nodes[name])
    return frame is not None and frame.dim is not None
