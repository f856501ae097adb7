"""Ancestral draws of every site of a model.

Many draws are made at a time.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyro
import pyro.poutine as poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from ppl_dgm.program.bound_program import PARTICLE_PLATE
from ppl_dgm.program.explosions import warn_of_explosions
from ppl_dgm.program.handlers import Substitute
from ppl_dgm.program.inverses import check_inverse
from ppl_dgm.program.particles import Values
from ppl_dgm.program.pyro_patches import right_draws, unvalidated
from ppl_dgm.program.sites import Site, is_deterministic, is_factor, is_subsample, random_sites
from ppl_dgm.program.structure import Structure
from ppl_dgm.program.vmap_patches import loop_runs, vmap_runs

__all__ = ["Uncondition", "draw_sites"]


def draw_sites(
    model: Callable,
    structure: Structure,
    num_samples: int,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    given: Values | None = None,
) -> Values:
    """Draw all sites of the model jointly.

    Latents in `given`, `[num_samples, *shape]`, are held. Returns `{site: [num_samples, *shape]}`.
    """
    kwargs, given, free = kwargs or {}, given or {}, Uncondition()(model)
    with unvalidated(), right_draws():
        if structure.model_runs != "plate":
            return repeated_sites(free, structure, num_samples, args, kwargs, given)
        latents = {latent.name: latent for latent in structure.latents}
        padded = {
            name: latents[name].pad(value, structure.nesting)
            for name, value in given.items()
            if name in latents
        }
        with (
            pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - structure.nesting),
            Substitute(padded),
        ):
            trace = poutine.trace(free).get_trace(*args, **kwargs)
    for name, site in random_sites(trace):
        check_inverse(name, site["fn"])
        warn_of_explosions(name, site["fn"], site["value"])
    return {name: strip(site, num_samples, structure.nesting) for name, site in drawn_sites(trace)}


class Uncondition(UnconditionMessenger):
    """Pyro handler that draws observed sites anew.

    Deterministic sites and factors, which Pyro has as observed, stay as they are.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not is_deterministic(msg) and not is_factor(msg):
            super()._pyro_sample(msg)


def repeated_sites(
    model: Callable,
    structure: Structure,
    num_samples: int,
    args: tuple,
    kwargs: Mapping[str, Any],
    given: Values,
) -> Values:
    """`draw_sites` by single runs, mapped or one after the other.

    Runs that were mapped with latents summed out may not be with latents drawn.
    """

    def once(values: Values) -> Values:
        with Substitute(values):
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        return {name: site["value"] for name, site in drawn_sites(trace)}

    if structure.model_runs == "vmap" or num_samples == 1:
        with suppress(RuntimeError):
            return vmap_runs(once, num_samples, None, given)
    return loop_runs(once, num_samples, given)


def drawn_sites(trace: Any) -> list[tuple[str, Site]]:
    """List the random and deterministic sites of a trace.

    Sites without a value to show are left out.
    """
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not is_subsample(site)
        and isinstance(site["value"], Tensor)
        and site["value"].numel()
    ]


def strip(site: Site, num_samples: int, nesting: int) -> Tensor:
    """Plate layout -> `[num_samples, *shape]`."""
    own = max(
        (
            -f.dim
            for f in site["cond_indep_stack"]
            if f.dim is not None and f.name != PARTICLE_PLATE
        ),
        default=0,
    )
    value = site["value"]
    batch_dim = value.dim() - site["fn"].event_dim
    if (
        is_deterministic(site)
        and batch_dim == 0
        and value.dim() > nesting
        and value.shape[0] == num_samples
    ):
        batch_dim = (
            1 + nesting
        )  # Pyro takes all its dimensions for event dimensions unless told otherwise
    if batch_dim <= nesting:  # the site does not vary between draws
        return value.expand(
            num_samples, *value.shape[batch_dim - own :] if own < batch_dim else value.shape
        )
    return value.reshape(value.shape[:1] + value.shape[1 + nesting - own :])
