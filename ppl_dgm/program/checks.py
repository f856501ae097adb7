"""Errors of programs that do not fit their data.

A program may also not fit itself. Each error names the site and the cure.
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.util import check_site_shape
from torch import Tensor

from ppl_dgm.program.first_run import blame, cure_of_nesting
from ppl_dgm.program.guide_checks import check_guide_sizes, check_same_latents
from ppl_dgm.program.log_densities import seen_entries, unmasked_value
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.sites import (
    Site,
    is_factor,
    is_summed_out,
    random_sites,
)
from ppl_dgm.program.structure import Structure
from ppl_dgm.program.supports import innermost, moves, support_of

__all__ = ["check", "refuse_implicit", "refuse_point_masses"]

NUM_RERUNS = 8  # in which a support that moves with the latents shows it


def refuse_implicit(structure: Structure, site: str) -> None:
    """Refuse a program without a density.

    The ValueError names what gives it one and what needs none.
    """
    if structure.density(site) == "implicit":
        raise ValueError(
            f"the data site {site!r} is deterministic, so that the program has no density: no "
            "likelihood, no evidence. Give it an observation noise, e.g. "
            "generator.with_noise(0.1), or pyro.sample('x', dist.Normal(generator(z), "
            "noise).to_event(1), obs=x); to fit it without one, use objectives.GAN(critic) or "
            "FGAN(critic)"
        )


def check(
    structure: Structure,
    model_trace: Any,
    guide_trace: Any,
    again: Callable[[], Any],
    alone: Callable[[], Any],
) -> None:
    """Check the sites, plates, supports and shapes of traces.

    There is one trace of the model and, if there is a guide, one of the guide.

    `again` traces guide and model once more, with other latents.
    """
    check_something_to_score(structure, model_trace)
    check_plate(structure, model_trace, guide_trace)
    check_sequential(structure, model_trace)
    if guide_trace is not None:
        check_same_latents(structure, model_trace, guide_trace)
    try:
        for _, site in random_sites(model_trace):
            if site["is_observed"] and not is_factor(site):
                check_observed(site, again)
                check_data_dimension(site, structure)
    except ValueError:
        if guide_trace is not None:
            check_guide_sizes(guide_trace, alone)
        raise
    for role, trace in (("model", model_trace), ("guide", guide_trace)):
        if trace is not None:
            check_shapes(role, trace, structure)


def check_something_to_score(structure: Structure, model_trace: Any) -> None:
    if structure.observed or structure.factors or structure.deterministic:
        return
    sites = [name for name, _ in random_sites(model_trace)]
    given = model_trace.nodes.get("_INPUT", {}).get("args", ())
    raise ValueError(
        f"the program has no observed site and no factor; its sample sites are {sites}. Pass the "
        "data on with obs=..., e.g. pyro.sample('x', ..., obs=x), and call the program with the "
        f"data{cure_of_nesting(given)}"
    )


def check_plate(structure: Structure, *traces: Any) -> None:
    for trace in filter(None, traces):
        for name, site in random_sites(trace):
            for frame in site["cond_indep_stack"]:
                if frame.name == structure.plate and frame.dim not in (-1, None):
                    raise ValueError(
                        f"the data plate {frame.name!r} is at dim {frame.dim} at site {name!r}; "
                        f"expected dim -1. Open it innermost, or write pyro.plate({frame.name!r}, "
                        "..., dim=-1) and give inner plates dim=-2, -3, ..."
                    )


def check_sequential(structure: Structure, model_trace: Any) -> None:
    """Refuse loops over a random part of the data.

    Their latents are named by datum, so that another run does not have them.
    """
    loops = [
        (name, frame.name)
        for name, site in random_sites(model_trace)
        for frame in site["cond_indep_stack"]
        if not site["is_observed"] and frame.dim is None and frame.name in structure.subsampled
    ]
    if loops:
        raise ValueError(
            f"the latents {[name for name, _ in loops]} are in a Python loop over a random part of "
            f"the plate {loops[0][1]!r}, so that other runs have others; write it `with "
            "pyro.plate(...) as index:`, or leave out subsample_size"
        )


def check_observed(site: Site, again: Callable[[], Any]) -> None:
    """Check one observed value.

    It must be a tensor of the right shape, without NaN and inside the support. A support may move
    with the latents.
    """
    name, fn, value = site["name"], site["fn"], site["value"]
    if not isinstance(value, Tensor):
        raise ValueError(
            f"site {name!r} observes a {type(value).__name__}; expected a torch.Tensor. Use "
            "torch.as_tensor"
        )
    check_observed_shape(name, fn, value)
    seen = seen_entries(site)
    for kind, wrong in (("NaN", value.isnan()), ("infinite values", value.isinf())):
        if bool((wrong & seen).any()):
            raise ValueError(
                f"site {name!r} observes {kind}; expected finite data. Remove, impute or mask them"
            )
    check_inside(site, unmasked_value(site), seen, again)


def check_inside(site: Site, value: Tensor, seen: Tensor, again: Callable[[], Any]) -> None:
    """Refuse unmasked values outside the support."""
    name, fn = site["name"], innermost(site["fn"])
    inside = support_of(site["fn"]).check(value) & totals_agree(fn, value)
    if bool(inside.all()) or any(moves(site, again()[1].nodes[name]) for _ in range(NUM_RERUNS)):
        return
    share, given = 100.0 * (1.0 - inside.double().mean().item()), value[seen]
    raise ValueError(
        f"site {name!r} observes values outside the support {support_of(site['fn'])} of "
        f"{type(fn).__name__} ({share:.3g} % of them; min {given.min().item():.6g}, max "
        f"{given.max().item():.6g}). {cure_of_support(fn, given)}"
    )


def totals_agree(fn: Any, value: Tensor) -> Tensor:
    """Tell whether counts add up to a multinomial's total.

    torch's support takes fewer too.
    """
    if not isinstance(fn, dist.Multinomial):
        return torch.ones((), dtype=torch.bool, device=value.device)
    return value.sum(-1) == fn.total_count


def cure_of_support(fn: Any, given: Tensor) -> str:
    """What to do with values outside a support."""
    if isinstance(fn, dist.Multinomial):
        return f"Their sums must be total_count = {fn.total_count}"
    if isinstance(fn, dist.Categorical) and given.min() >= 1 and given.max() == fn._num_events:
        return "Categories count from 0; subtract 1"
    return "Transform the data or choose a likelihood with their support"


def check_observed_shape(name: str, fn: Any, value: Tensor) -> None:
    """Check the shape of observed data.

    Data that broadcast to their distribution's event are refused, and so are those of which it
    gives no density.
    """
    expected, event = tuple(fn.shape()), tuple(fn.event_shape)
    given = tuple(value.shape[value.dim() - len(event) :]) if value.dim() >= len(event) else ()
    repeated = len(given) < len(event) or any(g < e for g, e in zip(given, event, strict=True))
    try:
        matches = torch.broadcast_shapes(expected, value.shape) == torch.Size(expected)
        if repeated or not (matches and given == event):
            fn.log_prob(value)
    except (RuntimeError, ValueError, IndexError):
        repeated = True
    if repeated:
        raise ValueError(
            f"site {name!r} observes data of shape {tuple(value.shape)}; its distribution has "
            f"batch shape {tuple(fn.batch_shape)} and event shape {event}, so expected {expected}"
        )


def check_data_dimension(site: Site, structure: Structure) -> None:
    """Refuse one observed value for a whole data plate.

    A datum without the dimension of data would count as many.
    """
    frame, event, value = (
        structure.layout(False).data_frame(site),
        len(site["fn"].event_shape),
        site["value"],
    )
    if frame is None or frame.dim is None:
        return
    batch = value.shape[: value.dim() - event]
    if (batch[-1] if batch else 1) != frame.size:
        raise ValueError(
            f"site {site['name']!r} observes one value of shape {tuple(value.shape)} for all "
            f"{frame.size} data of the plate {frame.name!r}; expected "
            f"{(frame.size, *value.shape[value.dim() - event :])}. Give one datum a dimension of "
            "data, x.unsqueeze(0)"
        )


def check_shapes(role: str, trace: Any, structure: Structure) -> None:
    """Check that every batch dimension is declared by a plate."""
    given = {name: site["value"] for name, site in random_sites(trace) if site["is_observed"]}
    with unvalidated():
        blame(role, trace.compute_log_prob, (), given)
    enumerated = any(is_summed_out(site) for _, site in random_sites(trace))
    for name, site in random_sites(trace):
        declared = (
            structure.nesting if enumerated else max(structure.nesting, site["log_prob"].dim())
        )
        try:
            check_site_shape(site, declared)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                f"site {name!r} of the {role} has a batch dimension that no plate declares: "
                f"{error}. Expected the data in `with pyro.plate({structure.plate!r}, size):` at "
                "dim -1 and event dimensions in .to_event(...)"
            ) from error


def refuse_point_masses(bound: Any) -> None:
    """Refuse latents that are fixed by point masses.

    A ValueError is raised, since latents that are not drawn give no weights.

    A guide that draws noise of its own and makes latents of it (a flow) is none of these.
    """
    structure = bound.structure
    fixed = [
        latent.name for latent in structure.latents if latent.point_mass and not latent.auxiliary
    ]
    if not fixed or any(latent.auxiliary for latent in structure.latents):
        return
    if not structure.has_guide:
        raise ValueError(
            f"the model draws {fixed} from a point mass (Delta), which is no latent; write "
            "pyro.deterministic(name, value)"
        )
    raise ValueError(
        f"the guide puts a point mass on {fixed}, which is no proposal distribution; use a guide "
        "with a density (AutoNormal, not AutoDelta), or Program(model) to propose from the prior, "
        "or Laplace"
    )
