"""Errors of guides that do not fit their models."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.program.inverses import check_inverse
from ppl_dgm.program.sites import (
    Site,
    is_auxiliary,
    is_point_mass,
    random_sites,
)
from ppl_dgm.program.structure import Structure
from ppl_dgm.program.supports import support_of

__all__ = ["check_guide_sizes", "check_same_latents", "check_same_site"]


def check_same_latents(structure: Structure, model_trace: Any, guide_trace: Any) -> None:
    model_sites, guide_sites = dict(random_sites(model_trace)), dict(random_sites(guide_trace))
    drawn = {latent.name for latent in structure.model_latents}
    lacking = sorted(drawn - guide_sites.keys())
    if lacking:
        raise ValueError(
            f"the guide lacks the latent sites {lacking} of the model; expected it to sample every "
            "one. Add them to the guide, or mark finite discrete ones infer={'enumerate': "
            "'parallel'} to sum them out"
        )
    for name, site in guide_sites.items():
        if site["is_observed"] or site["infer"].get("is_auxiliary"):
            continue
        if name not in drawn:
            raise ValueError(
                f"the guide samples {name!r}, which is not a latent site of the model (those are "
                f"{sorted(drawn)}). Rename it, or sample it in the model too; noise whose images "
                "are the latents is marked infer={'is_auxiliary': True}"
            )
        check_same_site(name, model_sites[name], site)
    check_auxiliary(guide_sites)


def check_guide_sizes(guide_trace: Any, alone: Callable[[], Any]) -> None:
    """Blame the guide for plates of other sizes.

    The model opens its own for these data.
    """
    given = plate_sizes(guide_trace)
    try:
        own = plate_sizes(alone())
    except Exception:  # a model that does not run by itself has no sizes of its own
        return
    for plate in given.keys() & own.keys():
        if given[plate] != own[plate]:
            raise ValueError(
                f"the guide opens the plate {plate!r} for {given[plate]} data, but the model for "
                f"{own[plate]}. An autoguide keeps the sizes of the data that it first saw: make "
                "another for these data, or a guide that takes their length"
            )


def plate_sizes(trace: Any) -> dict[str, int]:
    """The sizes of a trace's vectorised plates, by name."""
    frames = (frame for _, site in random_sites(trace) for frame in site["cond_indep_stack"])
    return {frame.name: frame.size for frame in frames if frame.dim is not None}


def check_auxiliary(guide_sites: Mapping[str, Site]) -> None:
    """Refuse guides with more randomness than their latents hold.

    Their log weights do not average to the evidence.
    """
    image = {name: is_point_mass(site) for name, site in guide_sites.items()}
    noise = [name for name, site in guide_sites.items() if is_auxiliary(site) and not image[name]]
    given = sum(guide_sites[name]["value"].numel() for name in noise)
    taken = sum(
        site["value"].numel()
        for name, site in guide_sites.items()
        if image[name] and not is_auxiliary(site)
    )
    if given > taken:
        raise ValueError(
            f"the guide's auxiliary variables {noise} are {given} numbers, of which the latents "
            f"drawn by dist.Delta are {taken}: the density of the others would have to be "
            "integrated out. Make the latents their images, z = pyro.sample('z', dist.Delta(f(a), "
            "log_density=-log|f'(a)|)), or sample the auxiliary variables in the model too, given "
            "the latents"
        )


def check_same_site(name: str, model_site: Site, guide_site: Site) -> None:
    """Check that a latent agrees in model and guide.

    Its shape and support must be the same.
    """
    model_fn, guide_fn = model_site["fn"], guide_site["fn"]
    if (
        tuple(model_fn.shape()) != tuple(guide_fn.shape())
        or model_fn.event_dim != guide_fn.event_dim
    ):
        raise ValueError(
            f"latent {name!r} has batch and event shape {tuple(model_fn.batch_shape)}, "
            f"{tuple(model_fn.event_shape)} in the model but {tuple(guide_fn.batch_shape)}, "
            f"{tuple(guide_fn.event_shape)} in the guide; make them equal"
        )
    if is_point_mass(guide_site):
        return
    check_inverse(name, guide_fn)
    model_support, guide_support = support_of(model_fn), support_of(guide_fn)
    covered = bool(model_support.check(guide_site["value"]).all())
    if not covered or narrower(guide_fn, model_fn, guide_site["value"]):
        raise ValueError(
            f"the support of latent {name!r} is {model_support} in the model but "
            f"{guide_support} in the guide; expected the guide to cover exactly the model's. "
            "Use a guide distribution with that support, or transform it"
        )


def narrower(guide_fn: Any, model_fn: Any, inside: Tensor) -> bool:
    """Return whether the guide's support misses draws of the prior.

    The prior is the model's. What it draws as NaN, as flows do that overflow in their tails, tells
    nothing of the guide: values `inside` take its place.
    """
    try:
        draws = model_fn.sample()
        draws = torch.where(draws.isnan(), inside, draws)
        return not bool(support_of(guide_fn).check(draws).all())
    except NotImplementedError:
        return False
