"""Sum out enumerated latents exactly."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import chain
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from ppl_dgm.program.log_densities import Layout, Tally, log_prob_of, unmask
from ppl_dgm.program.log_einsum import SumRing
from ppl_dgm.program.sites import Site, is_drawn, is_summed_out

__all__ = ["blaming_dimensions", "entangled", "split_enumerated"]

MOST_DIMENSIONS = "up to 64 dims"  # of a tensor, as torch says


@contextmanager
def blaming_dimensions(names: Sequence[str]) -> Iterator[None]:
    """Name the cause where torch lacks dimensions.

    Each of the enumerated latents named takes one, unless a Markov loop uses them again.
    """
    try:
        yield
    except RuntimeError as error:
        if MOST_DIMENSIONS not in str(error):
            raise
        raise ValueError(
            f"{len(names)} latents are summed out, each along a dimension of its own, of which "
            "tensors have 64; loop by pyro.markov, which uses them again, ask a BayesNet by its "
            "log_evidence, or let a guide draw some of them"
        ) from None


def split_enumerated(trace: Any, sites: list[Site], layout: Layout) -> tuple[Any, Any]:
    """Compute log prior and likelihood with enumerated latents summed out.

    They are log p(z) and log p(x | z) of the drawn latents z. The sums are exact.

    Where no drawn latent depends on an enumerated one, these are summed out of p(x | z) alone; else
    p(x | z) is p(x, z) / p(z), each with its own sum. Masks do not touch what is summed out: a
    masked sum would count values.
    """
    if entangled(trace, sites):
        prior = eliminate(trace, [site for site in sites if not site["is_observed"]], layout)
        return prior, eliminate(trace, sites, layout) - prior
    others = [site for site in sites if site["is_observed"] or is_summed_out(site)]
    return eliminate(trace, [site for site in sites if is_drawn(site)], layout), eliminate(
        trace, others, layout
    )


def entangled(trace: Any, sites: list[Site]) -> bool:
    """Return whether a drawn latent depends on enumerated ones.

    The log densities of the trace's sites are packed on the way.
    """
    unmask(filter(is_summed_out, sites))
    terms = [log_prob_of(site, 1.0) for site in sites]
    finest = reduce(torch.promote_types, [term.dtype for term in terms], torch.float16)
    for site, term in zip(sites, terms, strict=True):  # products are of one dtype
        site["log_prob"] = site["unscaled_log_prob"] = term.to(finest)
    trace.pack_tensors()
    summed = enumerated_symbols(sites)
    return any(depends(site, summed) for site in filter(is_drawn, sites))


def eliminate(trace: Any, sites: list[Site], layout: Layout) -> Any:
    """Sum log densities after summing out enumerated sites.

    This is tensor variable elimination on packed log densities.

    Obermeyer et al. (2019), "Tensor variable elimination for plated factor graphs". Masks of what
    depends on them apply inside the sum over the discrete values, scales outside.
    """
    summed, tally = enumerated_symbols(sites), Tally(layout)
    for site in sites:
        if not depends(site, summed):
            tally.add(site["log_prob"] * layout.relative_scale(site), site)
    for group in linked(sites, summed):
        factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for site in group:
            factors.setdefault(plate_symbols(trace, site), []).append(site["packed"]["log_prob"])
        ((term,),) = contract_tensor_tree(factors, summed, ring=SumRing()).values()
        scale = shared_scale([layout.relative_scale(site) for site in group])
        tally.add(packed.unpack(term, trace.symbol_to_dim) * scale, shared_site(group, layout))
    return tally.value


def linked(sites: list[Site], symbols: set[str]) -> list[list[Site]]:
    """Group sites by the enumerated dimensions that they share.

    Different groups share none. Sites with none of these dimensions are left out.
    """
    groups: list[tuple[set[str], list[Site]]] = []
    for site in filter(lambda site: depends(site, symbols), sites):
        own = symbols.intersection(site["packed"]["log_prob"]._pyro_dims)
        near = [group for group in groups if group[0] & own]
        merged = (
            own.union(*(dims for dims, _ in near)),
            [*chain.from_iterable(group for _, group in near), site],
        )
        groups = [group for group in groups if not group[0] & own] + [merged]
    return [group for _, group in groups]


def depends(site: Site, symbols: set[str]) -> bool:
    """Return whether a site has any of these dimensions.

    The dimensions are those of its packed log density.
    """
    return not symbols.isdisjoint(site["packed"]["log_prob"]._pyro_dims)


def enumerated_symbols(sites: list[Site]) -> set[str]:
    """Symbols of the dimensions along which discrete sites are enumerated."""
    dims = [(site, site["infer"].get("_enumerate_dim")) for site in sites]
    return {site["infer"]["_dim_to_symbol"][dim] for site, dim in dims if dim is not None}


def plate_symbols(trace: Any, site: Site) -> frozenset[str]:
    """The plates around a site as a set of symbols."""
    return frozenset(
        trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized
    )


def shared_site(group: list[Site], layout: Layout) -> Site:
    """Make a site for the contracted term of a group.

    It is in the plates that all sites of the group are in.
    """
    stack = tuple(
        f
        for f in group[0]["cond_indep_stack"]
        if all(f in site["cond_indep_stack"] for site in group)
    )
    site = {**group[0], "cond_indep_stack": stack}
    if layout.per_datum and layout.data_frame(site) is None:
        raise ValueError(
            f"the turns of the sequential data plate {layout.plate!r} share summed-out latents "
            f"(sites {[other['name'] for other in group]}), so that no datum has an evidence of "
            "its own. Loop by pyro.markov(range(n)) in place of the plate: then the data have one "
            "evidence together"
        )
    return site


def shared_scale(scales: list[Any]) -> Any:
    """Return the common scale of linked sites.

    These sites share an enumerated variable. Different scales are refused.
    """
    if all(
        scale is scales[0] or bool(torch.as_tensor(scale == scales[0]).all()) for scale in scales
    ):
        return scales[0]
    raise ValueError(
        "sites that share an enumerated variable have different poutine.scale factors, so that "
        f"the variable cannot be summed out; expected one common scale, got {scales}. Scale them "
        "alike, or add the variable to the guide"
    )
