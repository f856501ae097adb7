"""Reading a trace: which sites a program has, and what each contributes to a log density."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_dgm.program.supports import innermost, possible

Site = dict[str, Any]


def is_subsample(site: Site) -> bool:
    """Whether the site is the index set of a plate."""
    return isinstance(site["fn"], _Subsample)


def is_random_subsample(site: Site) -> bool:
    """Whether the plate behind this site draws a random part of its indices."""
    return is_subsample(site) and site["fn"].subsample_size not in (None, site["fn"].size)


def is_deterministic(site: Site) -> bool:
    """Whether the site is a `pyro.deterministic` statement."""
    return bool(site["infer"].get("_deterministic"))


def is_factor(site: Site) -> bool:
    """Whether the site is a `pyro.factor` statement."""
    return innermost(site["fn"]).__class__.__name__ == "Unit"


def is_auxiliary(site: Site) -> bool:
    """Whether the site is a variable of the guide alone (Pyro marks factors so too, which are none)."""
    return bool(site["infer"].get("is_auxiliary")) and not is_factor(site)


def is_enumerated(site: Site) -> bool:
    """Whether the site asks to be summed out in parallel."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_summed_out(site: Site) -> bool:
    """Whether the site holds all values of its variable, along a dimension of their own."""
    return not site["is_observed"] and site["infer"].get("_enumerate_dim") is not None


def is_drawn(site: Site) -> bool:
    """Whether the site is a latent that holds one value."""
    return not site["is_observed"] and not is_summed_out(site)


def random_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """Names and sites of a trace that carry a log density."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_subsample(site) and not is_deterministic(site):
            yield name, site


class Substitute(Messenger):
    """Gives latent sites their values, leaving them latent; point masses of a guide are recomputed, not replaced."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not isinstance(innermost(msg["fn"]), dist.Delta):
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


@contextmanager
def unvalidated() -> Iterator[None]:
    """Run without argument checks, also for distributions made while checks were on.

    The checks read tensors on the host, which neither `torch.func.vmap` nor a captured graph allows.
    """
    distribution = torch.distributions.Distribution
    validate_sample = distribution._validate_sample
    distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign,assignment]
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        distribution._validate_sample = validate_sample  # type: ignore[method-assign]


def forgiving_cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """Cholesky factor, NaN where a matrix of the batch is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


@contextmanager
def forgiving_factors() -> Iterator[None]:
    """Let one particle's singular covariance make its own density NaN, not stop all the others with an error."""
    strict = torch.linalg.cholesky
    torch.linalg.cholesky = forgiving_cholesky  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.linalg.cholesky = strict


@dataclass(frozen=True)
class Layout:
    """Where the dimensions of a log density are: `[particles, ..., data]` when both are present."""

    particles: bool
    nesting: int
    plate: str
    per_datum: bool
    common_scale: bool

    def data_frame(self, site: Site) -> Any:
        """The frame of the data plate around a site, or None."""
        return next((f for f in site["cond_indep_stack"] if f.name == self.plate), None)

    def datum_scale(self, site: Site) -> Any:
        """The factor by which every datum counts: what must be taken out of a log weight and put back after."""
        frame = self.data_frame(site)
        if not self.per_datum or frame is None:
            return 1.0
        return site["scale"] if self.common_scale else frame.full_size / frame.size

    def relative_scale(self, site: Site) -> Any:
        """What is left of a site's scale: an exponent of its density."""
        if self.per_datum and self.common_scale:
            return 1.0
        return site["scale"] / self.datum_scale(site)

    def collapse(self, log_prob: Tensor, keep_data: bool) -> Tensor:
        """Sum out every plate but the particles' and, if kept, the data's: `[particles, data]`."""
        lead = int(self.particles)
        missing = self.nesting + lead - log_prob.dim()
        if any(size > 1 for size in log_prob.shape[: max(0, -missing)]):
            raise ValueError(
                f"a log density has shape {tuple(log_prob.shape)}, with dimensions to the left of all its plates; expected "
                f"at most {self.nesting + lead}. Let the site's distribution broadcast as its plates say"
            )
        shape = (1,) * max(0, missing) + log_prob.shape[max(0, -missing) :]
        log_prob = log_prob.reshape(shape)
        dims = tuple(range(lead, log_prob.dim() - int(keep_data)))
        return log_prob.sum(dims) if dims else log_prob


@dataclass
class Tally:
    """Running total of log densities, per datum or over all data; one column per turn of a sequential data plate."""

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
    """Masked and scaled log density of one site at its value; zero density for data that the latents rule out."""
    fn, mask = part_mask(site)
    log_prob = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    inside = possible(fn, site["value"]) if site["is_observed"] and not is_factor(site) else None
    log_prob = log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)
    return scale_and_mask(log_prob, scale, mask)


def part_mask(site: Site) -> tuple[Any, Any]:
    """A site's distribution without `.mask(...)`, and that and the handlers' masks in one; None where there are none."""
    fn, mask = site["fn"], site["mask"]
    while isinstance(fn, dist.MaskedDistribution):
        mask = fn._mask if mask is None else mask & fn._mask
        fn = fn.base_dist
    return fn, mask


def sum_sites(sites: list[Site], layout: Layout, scale: Callable[[Site], Any] | None = None) -> Any:
    """Sum the log densities of sites that involve no enumeration, each with its relative scale or the one that is given."""
    tally, scale = Tally(layout), scale or layout.relative_scale
    for site in sites:
        tally.add(log_prob_of(site, scale(site)), site)
    return tally.value


def sum_scores(sites: list[Site], layout: Layout) -> Any:
    """Sum the log densities with which sites were drawn: scales and masks say what counts, not what is drawn."""
    unmask(sites)
    return sum_sites(sites, layout, lambda site: 1.0)


def unmask(sites: Iterable[Site]) -> None:
    """Leave masked latents their densities, which integrate (or sum) to one; without they have none to integrate."""
    for site in sites:
        site["fn"], site["mask"] = part_mask(site)[0], None


def split_enumerated(trace: Any, sites: list[Site], layout: Layout) -> tuple[Any, Any]:
    """log p(z) and log p(x | z) of the drawn latents z, the enumerated ones summed out exactly.

    Where no drawn latent depends on an enumerated one, these are summed out of p(x | z) alone; else p(x | z) is
    p(x, z) / p(z), each with its own sum. Masks do not touch what is summed out: a masked sum would count values.
    """
    if entangled(trace, sites):
        prior = eliminate(trace, [site for site in sites if not site["is_observed"]], layout)
        return prior, eliminate(trace, sites, layout) - prior
    others = [site for site in sites if site["is_observed"] or is_summed_out(site)]
    return eliminate(trace, [site for site in sites if is_drawn(site)], layout), eliminate(trace, others, layout)


def entangled(trace: Any, sites: list[Site]) -> bool:
    """Pack the log densities of a trace's sites, and tell whether that of a drawn latent depends on an enumerated one."""
    unmask(filter(is_summed_out, sites))
    for site in sites:
        site["log_prob"] = site["unscaled_log_prob"] = log_prob_of(site, 1.0)
    trace.pack_tensors()
    summed = enumerated_symbols(sites)
    return any(depends(site, summed) for site in filter(is_drawn, sites))


def eliminate(trace: Any, sites: list[Site], layout: Layout) -> Any:
    """Sum the packed log densities of sites after summing out the enumerated ones among them (tensor variable elimination).

    Obermeyer et al. (2019), "Tensor variable elimination for plated factor graphs". Masks of what depends on them apply
    inside the sum over the discrete values, scales outside.
    """
    summed, tally = enumerated_symbols(sites), Tally(layout)
    for site in sites:
        if not depends(site, summed):
            tally.add(site["log_prob"] * layout.relative_scale(site), site)
    for group in linked(sites, summed):
        factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for site in group:
            factors.setdefault(plate_symbols(trace, site), []).append(site["packed"]["log_prob"])
        ((term,),) = contract_tensor_tree(factors, summed).values()
        scale = shared_scale([layout.relative_scale(site) for site in group])
        tally.add(packed.unpack(term, trace.symbol_to_dim) * scale, shared_site(group, layout))
    return tally.value


def linked(sites: list[Site], symbols: set[str]) -> list[list[Site]]:
    """The sites with a dimension among these, in groups that share none."""
    groups: list[tuple[set[str], list[Site]]] = []
    for site in filter(lambda site: depends(site, symbols), sites):
        own = symbols.intersection(site["packed"]["log_prob"]._pyro_dims)
        near = [group for group in groups if group[0] & own]
        merged = own.union(*(dims for dims, _ in near)), [*chain.from_iterable(group for _, group in near), site]
        groups = [group for group in groups if not group[0] & own] + [merged]
    return [group for _, group in groups]


def depends(site: Site, symbols: set[str]) -> bool:
    """Whether a site's packed log density has a dimension among these."""
    return not symbols.isdisjoint(site["packed"]["log_prob"]._pyro_dims)


def enumerated_symbols(sites: list[Site]) -> set[str]:
    """Symbols of the dimensions along which discrete sites are enumerated."""
    dims = [(site, site["infer"].get("_enumerate_dim")) for site in sites]
    return {site["infer"]["_dim_to_symbol"][dim] for site, dim in dims if dim is not None}


def plate_symbols(trace: Any, site: Site) -> frozenset[str]:
    """The plates around a site as a set of symbols."""
    return frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)


def shared_site(group: list[Site], layout: Layout) -> Site:
    """A site in the plates that all sites of a group are in: it stands for their contracted term."""
    stack = tuple(f for f in group[0]["cond_indep_stack"] if all(f in site["cond_indep_stack"] for site in group))
    site = {**group[0], "cond_indep_stack": stack}
    if layout.per_datum and layout.data_frame(site) is None:
        raise ValueError(
            f"the turns of the sequential data plate {layout.plate!r} share summed-out latents (sites "
            f"{[other['name'] for other in group]}), so that no datum has an evidence of its own. Loop by "
            "pyro.markov(range(n)) in place of the plate: then the data have one evidence together"
        )
    return site


def check_one_scale(sites: Mapping[str, Site]) -> None:
    """Refuse scales that differ where the structure, read at an earlier run, has one for all."""
    scales = {name: site["scale"] for name, site in sites.items() if not isinstance(site["scale"], Tensor)}
    if len(set(scales.values())) > 1:
        raise ValueError(
            f"the sites' scales are {scales}, but they were all alike when the program was first run, so that they count as "
            "one. Initialise it with scales that differ (a weight of 0.5, not of 1), or leave them out and use kl_weight"
        )


def shared_scale(scales: list[Any]) -> Any:
    """The one scale of all sites that share an enumerated variable."""
    if all(scale is scales[0] or bool(torch.as_tensor(scale == scales[0]).all()) for scale in scales):
        return scales[0]
    raise ValueError(
        "sites that share an enumerated variable have different poutine.scale factors, so that the variable cannot be "
        f"summed out; expected one common scale, got {scales}. Scale them alike, or add the variable to the guide"
    )
