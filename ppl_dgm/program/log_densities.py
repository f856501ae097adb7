"""Sum the log densities of a trace's sites."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import TransformedDistribution

from ppl_dgm.program.sites import Site, is_factor
from ppl_dgm.program.supports import in_support, inner_point
from ppl_dgm.program.whole_parameters import as_reals, in_real_numbers

__all__ = [
    "Layout",
    "Tally",
    "check_one_scale",
    "count_observed",
    "is_masked",
    "log_prob_of",
    "seen_entries",
    "sum_scores",
    "sum_sites",
    "unmask",
    "unmasked_value",
]


@dataclass(frozen=True)
class Layout:
    """Layout of the dimensions of a log density.

    It is `[particles, ..., data]` when both are present.
    """

    particles: bool
    nesting: int
    plate: str
    per_datum: bool
    common_scale: bool

    def data_frame(self, site: Site) -> Any:
        """Return the data plate's frame around a site.

        It is None where the site is outside the plate.
        """
        return next((f for f in site["cond_indep_stack"] if f.name == self.plate), None)

    def datum_scale(self, site: Site) -> Any:
        """Return the factor by which every datum counts.

        It must be taken out of a log weight and put back afterwards.
        """
        frame = self.data_frame(site)
        if not self.per_datum or frame is None:
            return 1.0
        return site["scale"] if self.common_scale else frame.full_size / frame.size

    def relative_scale(self, site: Site) -> Any:
        """Return a site's scale without that of each datum.

        It is an exponent of the site's density.
        """
        if self.per_datum and self.common_scale:
            return 1.0
        return site["scale"] / self.datum_scale(site)

    def collapse(self, log_prob: Tensor, keep_data: bool) -> Tensor:
        """Sum out all plates but particles and data.

        The plate of data is kept only if `keep_data` says so. With both the result is `[particles,
        data]`.
        """
        lead = int(self.particles)
        missing = self.nesting + lead - log_prob.dim()
        if any(size > 1 for size in log_prob.shape[: max(0, -missing)]):
            raise ValueError(
                f"a log density has shape {tuple(log_prob.shape)}, with dimensions to the left of "
                f"all its plates; expected at most {self.nesting + lead}. Let the site's "
                "distribution broadcast as its plates say"
            )
        shape = (1,) * max(0, missing) + log_prob.shape[max(0, -missing) :]
        log_prob = log_prob.reshape(shape)
        dims = tuple(range(lead, log_prob.dim() - int(keep_data)))
        return log_prob.sum(dims) if dims else log_prob


@dataclass
class Tally:
    """Running total of log densities.

    It is per datum or over all data. A sequential data plate has one column per turn.
    """

    layout: Layout
    total: Any = 0.0
    columns: dict[int, Any] = field(default_factory=dict)

    def add(self, log_prob: Tensor, site: Site) -> None:
        """Add one site's log density."""
        frame = self.layout.data_frame(site) if self.layout.per_datum else None
        vectorised = frame is not None and frame.dim is not None
        value = self.layout.collapse(log_prob, keep_data=vectorised)
        if frame is not None and not vectorised:
            self.columns[frame.counter] = self.columns.get(frame.counter, 0.0) + value
        else:
            self.total = self.total + value

    @property
    def value(self) -> Any:
        """The total, `[particles, data]`, `[data]`, `[particles]` or `[]`."""
        if not self.columns:
            return self.total
        return self.total + torch.stack([self.columns[i] for i in sorted(self.columns)], -1)


def log_prob_of(site: Site, scale: Any) -> Tensor:
    """Compute the masked, scaled log density of a site.

    Data that the latents rule out have a density of zero.
    """
    fn, mask = part_mask(site)
    fn = in_real_numbers(fn)
    value = unmasked_value(site) if site["is_observed"] else site["value"]
    log_prob = fn.log_prob(value, *site["args"], **site["kwargs"])
    inside = in_support(fn, value) if site["is_observed"] and not is_factor(site) else None
    log_prob = log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)
    return scale_and_mask(log_prob, scale, mask)


def unmasked_value(site: Site) -> Tensor:
    """Return the observed value as numbers.

    Where masks take it out, it is one inside the support.

    What is masked may be NaN or a pad outside the support; its derivatives would be NaN too.
    """
    value = as_reals(site["value"])
    if not is_masked(site) or is_factor(site):
        return value
    return torch.where(seen_entries(site), value, inner_point(site["fn"], value))


def is_masked(site: Site) -> bool:
    """Tell whether masks take out some of a value.

    They may be of handlers or distributions.
    """
    masks = (mask for mask, _ in masks_of(site) if mask is not None)
    return any(isinstance(mask, Tensor) or not mask for mask in masks)


def count_observed(trace: Any) -> Any:
    """Convert a trace's observed values to floating-point numbers.

    Only booleans and integers change. The program keeps its own.
    """
    for site in trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"] and isinstance(site["value"], Tensor):
            site["value"] = as_reals(site["value"])
    return trace


def part_mask(site: Site) -> tuple[Any, Any]:
    """Separate a distribution from its masks.

    The distribution is without `.mask(...)`. Its masks and those of handlers are one, or None where
    there are none.
    """
    fn, mask = site["fn"], site["mask"]
    while isinstance(fn, dist.MaskedDistribution):
        mask = fn._mask if mask is None else mask & fn._mask
        fn = fn.base_dist
    return fn, mask


def sum_sites(sites: list[Site], layout: Layout, weights: Tensor | None = None) -> Any:
    """Sum the log densities of sites without enumeration.

    Each counts with its relative scale, and each datum in the data plate with its weight, `[data]`.
    """
    tally = Tally(layout)
    for site in sites:
        scale = layout.relative_scale(site)
        if weights is not None and layout.data_frame(site) is not None:
            scale = scale * weights
        tally.add(log_prob_of(site, scale), site)
    return tally.value


def seen_entries(site: Site) -> Tensor:
    """Mark the unmasked entries of a site's value.

    Masks of handlers and of distributions count.
    """
    value = site["value"]
    seen = torch.ones_like(value, dtype=torch.bool)
    for mask, level in masks_of(site):
        if mask is not None:
            mask = torch.as_tensor(mask, device=value.device)
            seen = seen & mask.reshape(
                mask.shape + (1,) * (len(level.event_shape) if mask.dim() else 0)
            )
    return seen


def masks_of(site: Site) -> list[tuple[Any, Any]]:
    """Return a site's masks, each with its distribution.

    They are of handlers and of distributions.
    """
    fn, masks = site["fn"], [(site["mask"], site["fn"])]
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        masks.append((getattr(fn, "_mask", None), fn))
        fn = fn.base_dist
    return masks


def sum_scores(sites: list[Site], layout: Layout) -> Any:
    """Sum the log densities with which sites were drawn.

    Scales and masks do not enter, since they say what counts, not what is drawn.
    """
    unmask(sites)
    tally = Tally(layout)
    for site in sites:
        tally.add(log_prob_of(site, 1.0), site)
    return tally.value


def unmask(sites: Iterable[Site]) -> None:
    """Remove the masks of latent sites.

    Their densities then integrate (or sum) to one. With masks they have none to integrate.
    """
    for site in sites:
        site["fn"], site["mask"] = without_masks(site["fn"]), None


def without_masks(fn: Any) -> Any:
    """Remove the masks from a distribution.

    They may be at any depth of its `to_event` and `expand` wrappers.
    """
    if isinstance(fn, dist.MaskedDistribution):
        return without_masks(fn.base_dist)
    if isinstance(fn, (dist.Independent, ExpandedDistribution)):
        inner = without_masks(fn.base_dist)
        if inner is fn.base_dist:
            return fn
        depth = getattr(fn, "reinterpreted_batch_ndims", None)
        return inner.expand(fn.batch_shape) if depth is None else inner.to_event(depth)
    return fn


def check_one_scale(sites: Mapping[str, Site]) -> None:
    """Refuse scales that differ between sites.

    The structure, read at an earlier run, has one scale for all.
    """
    scales = {
        name: site["scale"] for name, site in sites.items() if not isinstance(site["scale"], Tensor)
    }
    if len(set(scales.values())) > 1:
        raise ValueError(
            f"the sites' scales are {scales}, but they were all alike when the program was first "
            "run, so that they count as one. Initialise it with scales that differ (a weight of "
            "0.5, not of 1), or leave them out and use kl_weight"
        )
