"""Ancestral draws of every site of a model.

Many draws are made at a time.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.discrete import _sample_posterior_from_trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_dgm.program.bound_program import PARTICLE_PLATE
from ppl_dgm.program.enumeration import entangled
from ppl_dgm.program.explosions import warn_of_explosions
from ppl_dgm.program.handlers import Substitute
from ppl_dgm.program.inverses import check_inverse
from ppl_dgm.program.particles import Values
from ppl_dgm.program.pyro_patches import right_draws, unvalidated
from ppl_dgm.program.sites import Site, is_deterministic, is_factor, is_subsample, random_sites
from ppl_dgm.program.structure import Structure
from ppl_dgm.program.vmap_patches import loop_runs, vmap_runs

__all__ = ["Uncondition", "draw_sites"]

CHOSEN_AT_ONCE = 128  # draws whose summed-out latents are drawn together


def draw_sites(
    model: Callable,
    structure: Structure,
    num_samples: int,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    given: Values | None = None,
    at_data: bool = False,
) -> Values:
    """Draw all sites of the model jointly.

    Latents in `given`, `[num_samples, *shape]`, are held. Returns `{site: [num_samples, *shape]}`.
    Latents that are summed out follow the prior given those, or `at_data` their posterior.
    """
    kwargs, given, free = kwargs or {}, given or {}, Uncondition()(model)
    chosen = structure.enumerated if at_data else ()
    with unvalidated(), right_draws():
        if structure.model_runs != "plate":
            if chosen:
                given = {**given, **repeated_choices(model, structure, args, kwargs, given)}
            return repeated_sites(free, structure, num_samples, args, kwargs, given)
        latents = {latent.name: latent for latent in structure.latents}
        padded = {
            name: latents[name].pad(value, structure.nesting)
            for name, value in given.items()
            if name in latents
        }
        if chosen:
            padded |= chosen_in_parts(model, structure, num_samples, args, kwargs, padded)
        with (
            pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - structure.nesting),
            Substitute(padded),
        ):
            trace = poutine.trace(free).get_trace(*args, **kwargs)
    for name, site in random_sites(trace):
        check_inverse(name, site["fn"])
        warn_of_explosions(name, site["fn"], site["value"])
    return {name: strip(site, num_samples, structure.nesting) for name, site in drawn_sites(trace)}


def chosen_in_parts(
    model: Callable,
    structure: Structure,
    num_samples: int,
    args: tuple,
    kwargs: Mapping[str, Any],
    given: Values,
) -> Values:
    """`chosen_values` in plate layout, of some draws at a time.

    The densities of all values of what is summed out are kept for each draw.
    """
    parts = []
    for start in range(0, num_samples, CHOSEN_AT_ONCE):
        size = min(CHOSEN_AT_ONCE, num_samples - start)
        held = {name: value[start : start + size] for name, value in given.items()}
        with pyro.plate(PARTICLE_PLATE, size, dim=-1 - structure.nesting), Substitute(held):
            parts.append(chosen_values(model, structure, args, kwargs))
    return {name: torch.cat([part[name] for part in parts]) for name in structure.enumerated}


def chosen_values(
    model: Callable, structure: Structure, args: tuple, kwargs: Mapping[str, Any]
) -> Values:
    """Draw latents that are summed out from their posterior.

    All others are held by handlers around this. Forward filtering and backward sampling, by Pyro.
    """

    def listed(site: Any) -> Any:
        return {"enumerate": "parallel" if site["name"] in structure.enumerated else None}

    summed = poutine.enum(
        poutine.infer_config(model, listed), first_available_dim=-2 - structure.nesting
    )
    trace = prune_subsample_sites(poutine.trace(summed).get_trace(*args, **kwargs))
    sites = [site for _, site in random_sites(trace)]
    entangled(trace, sites)  # which computes their log densities
    for site in sites:  # that backward sampling needs at every entry of their plates
        shape = torch.broadcast_shapes(site["log_prob"].shape, plate_shape(site))
        site["log_prob"] = site["unscaled_log_prob"] = site["log_prob"].expand(shape)
    trace.pack_tensors()
    supports = {name: numbered(trace.nodes[name]) for name in structure.enumerated}

    def replayed() -> Values:
        law = dist.Delta(torch.zeros(()))
        infer: Any = {"enumerate": "parallel"}
        return {name: pyro.sample(name, law, infer=infer) for name in structure.enumerated}

    found = {}
    for name, place in _sample_posterior_from_trace(replayed, trace, 1, False).items():
        shape = torch.broadcast_shapes(place.shape, plate_shape(trace.nodes[name]))
        found[name] = supports[name][place.expand(shape)]
    return found


def plate_shape(site: Any) -> torch.Size:
    """Shape of the plates around a site."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    sizes = [torch.Size([frame.size, *(1,) * (-1 - frame.dim)]) for frame in frames]
    return torch.broadcast_shapes(*sizes)


def numbered(site: Any) -> Tensor:
    """Number the values of an enumerated site, in place.

    They may be vectors, which cannot be chosen from. Returns the values themselves, `[values,
    *event]`.
    """
    value, num_values = site["value"], site["value"].shape[0]
    support = value.reshape(num_values, -1, *site["fn"].event_shape)[:, 0]
    places = torch.arange(num_values, device=value.device)
    batch_dim = value.dim() - site["fn"].event_dim
    site["value"] = places.reshape(-1, *(1,) * (batch_dim - 1)).expand(value.shape[:batch_dim])
    return support


def repeated_choices(
    model: Callable, structure: Structure, args: tuple, kwargs: Mapping[str, Any], given: Values
) -> Values:
    """`chosen_values` of single runs, one after the other."""

    def once(values: Values) -> Values:
        with Substitute(values):
            return chosen_values(model, structure, args, kwargs)

    return loop_runs(once, len(next(iter(given.values()))), given)


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
