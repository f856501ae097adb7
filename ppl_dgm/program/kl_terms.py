"""Distributions of each latent in guide and model, paired.

Terms beyond log weights are made of these pairs.
"""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.log_densities import Layout, sum_sites
from ppl_dgm.program.sites import Site, random_sites
from ppl_dgm.program.structure import Latent

__all__ = ["Pair", "PairedDraw", "draw_pairs"]


@dataclass(frozen=True)
class Pair:
    """Distributions of one latent in guide and model.

    They are q and p, given the other latents. `value` is its draw.
    """

    latent: Latent
    guide: Any
    model: Any
    value: Tensor


@dataclass(frozen=True)
class PairedDraw:
    """One draw of all latents, paired with their distributions.

    Pairs are in the guide's order. `likelihood` is log p(x | z), `[data]` (per datum) or `[]`, and
    `scale` that of each datum.
    """

    pairs: tuple[Pair, ...]
    likelihood: Any
    scale: Any


def draw_pairs(bound: Bound) -> PairedDraw:
    """Draw the latents from the guide once, without particles.

    Raises:
        ValueError: for latents whose distributions do not stand for their whole term in log p(z) -
            log q(z | x): summed out, masked, auxiliary, or scaled unlike the rest.
    """
    return bound._evaluate(lambda: read_pairs(bound))


def read_pairs(bound: Bound) -> PairedDraw:
    """`draw_pairs` without its settings."""
    structure = bound.structure
    check_pairs(bound)
    shared = bound._subsample_indices()
    guide = dict(random_sites(bound._trace(bound.guide, shared, None)))
    values = {latent.name: guide[latent.name]["value"] for latent in structure.latents}
    model = dict(random_sites(bound._trace(bound.model, values | shared, None)))
    observed = [site for site in model.values() if site["is_observed"]]
    layout = structure.layout(False)
    for name in values:
        check_plain(name, guide[name], layout)
        check_plain(name, model[name], layout)
    latents = [structure.find(name) for name in guide if name in values]
    pairs = [Pair(z, guide[z.name]["fn"], model[z.name]["fn"], values[z.name]) for z in latents]
    return PairedDraw(
        tuple(pairs), sum_sites(observed, layout), next(map(layout.datum_scale, observed), 1.0)
    )


def check_plain(name: str, site: Site, layout: Layout) -> None:
    """Refuse a site whose distribution is not its whole term."""
    scale = layout.relative_scale(site)
    if is_masked(site) or isinstance(scale, Tensor) or scale != 1:
        raise ValueError(
            f"latent {name!r} is masked, or scaled unlike the data, so that its distributions are "
            "not its whole term; leave out the mask or scale, or use ELBO()"
        )


def is_masked(site: Site) -> bool:
    """Whether a handler or the distribution itself masks a site."""
    fn = site["fn"]
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return site["mask"] is not None or isinstance(fn, dist.MaskedDistribution)


def check_pairs(bound: Bound) -> None:
    """Check that the KL term divides into latents.

    It must be neither more nor less than the sum over their pairs.
    """
    structure = bound.structure
    auxiliary = [latent.name for latent in structure.latents if latent.auxiliary]
    faults = {
        "it has no guide": not structure.has_guide,
        f"{list(structure.enumerated)} are summed out": bool(structure.enumerated),
        f"its guide has the auxiliary variables {auxiliary}": bool(auxiliary),
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ValueError(
            f"the program's KL term does not divide into the latents of a guide: {found[0]}; use "
            "ELBO(kl_weight=...) or another objective made of log weights"
        )
