"""Running a program once to learn its structure, and saying clearly what is wrong with it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions import TransformedDistribution

from ppl_dgm.program import checks
from ppl_dgm.program.arguments import select_data, tensors_of
from ppl_dgm.program.bound_program import Bound, Prior
from ppl_dgm.program.energies import find_energies
from ppl_dgm.program.isolation import undisturbed
from ppl_dgm.program.log_densities import part_mask
from ppl_dgm.program.parameters import ScopedCallable
from ppl_dgm.program.sites import (
    Site,
    is_auxiliary,
    is_deterministic,
    is_enumerated,
    is_factor,
    is_random_subsample,
    random_sites,
)
from ppl_dgm.program.structure import Latent, Structure
from ppl_dgm.program.supports import innermost

PROOF_PARTICLES = 3
PROOF_DATA = 4
PIECE = 1024


@dataclass(frozen=True)
class Examination:
    """What one look at a program and its data told: structure, number of data, and what was observed.

    `digest` identifies the observed values, whatever the sites' names; `num_dims` counts them.
    """

    structure: Structure
    num_data: int | None
    num_dims: int
    digest: str


def inspect(
    model: Callable,
    guide: Callable | None,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    plate: str = "data",
    sum_out: bool = False,
) -> Structure:
    """Find the structure of a model and guide at their data; see `examine`."""
    return examine(model, guide, args, kwargs, plate, sum_out).structure


def examine(
    model: Callable,
    guide: Callable | None,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    plate: str = "data",
    sum_out: bool = False,
) -> Examination:
    """Find the structure of a model and guide, checking that they fit each other and all of their data.

    Runs both with all of Pyro's checks on, a piece of the data at a time where the program allows, then proves on a
    few data that running several particles at once gives what running them one by one gives. With `sum_out` every
    finite discrete latent that the guide lacks is enumerated, not only those marked `infer={"enumerate": "parallel"}`.

    Raises:
        ValueError: naming the site, what was expected and the cure.
    """
    kwargs, proposal, observed = kwargs or {}, guide or Prior(model), Observed()
    size = leading_size(args, kwargs)
    with undisturbed(model, guide), pyro.validation_enabled(True):
        checks.check_finite_arguments(args, kwargs)
        if not prepared(model, guide):
            checks.run(model, proposal, args, kwargs)
        divisible = runs_on_few(model, proposal, args, kwargs, size, plate)
        structures = []
        for piece_args, piece_kwargs in pieces(args, kwargs, size if divisible else None):
            guide_trace, model_trace = checks.run(model, proposal, piece_args, piece_kwargs)
            found = read_structure(model_trace, guide_trace if guide else None, plate, sum_out)
            again = partial(checks.run, model, proposal, piece_args, piece_kwargs)
            checks.check(found, model_trace, guide_trace if guide else None, again)
            observed.add(found, model_trace)
            unmasked = masked_unlike(model_trace, guide_trace) if guide else ()
            energies = find_energies(model, model_trace, piece_args, piece_kwargs)
            structures.append(
                replace(found, divisible=divisible, unmasked=unmasked, energies=energies)
            )
        few = few_data(args, kwargs, size) if divisible else (args, kwargs)
        bound = Bound(model, proposal, structures[0], *few)
        if not guide and bound.is_entangled():
            bound = replace(bound, structure=structures[0].without_paths())
        structure = prove_vectorisation(bound)
    num_data = size if divisible else data_size(model_trace, plate)
    return Examination(structure, num_data, observed.num_dims, observed.digest)


class Observed:
    """Running digest and count of the observed values that are not masked, piece by piece."""

    def __init__(self) -> None:
        self.hashes: dict[str, Any] = {}
        self.num_dims = 0

    def add(self, structure: Structure, model_trace: Any) -> None:
        """Add the observed values of one trace, as 32-bit numbers so that the same data in other dtypes agree."""
        for name in structure.observed:
            site = model_trace.nodes[name]
            value, seen = site["value"].detach(), seen_entries(site)
            self.num_dims += int(seen.sum())
            digest = self.hashes.setdefault(name, hashlib.blake2b(digest_size=16))
            if not bool(seen.all()):
                digest.update(seen.cpu().numpy().tobytes())
            digest.update(value[seen].to("cpu", torch.float32).numpy().tobytes())

    @property
    def digest(self) -> str:
        """One digest for all sites, in the order of their contents."""
        return hashlib.blake2b(
            "".join(sorted(h.hexdigest() for h in self.hashes.values())).encode(), digest_size=8
        ).hexdigest()


def leading_size(args: tuple, kwargs: Mapping[str, Any]) -> int | None:
    """First dimension of the first tensor argument: the number of data, if the data plate agrees."""
    return next((tensor.shape[0] for tensor in tensors_of(args, kwargs) if tensor.dim()), None)


def prepared(*callables: Any) -> bool:
    """Whether the program's state cannot be shaped by its first run: that one then may see a part of the data.

    Functions make parameters (`pyro.param("loc", torch.zeros(len(x)))`) and autoguides plates at their first run.
    """
    for fn in callables:
        own = fn.fn if isinstance(fn, ScopedCallable) else fn
        initialised = isinstance(fn, ScopedCallable) and fn.scope.initialised
        if not (
            own is None
            or initialised
            or (isinstance(own, nn.Module) and not isinstance(own, AutoGuide))
        ):
            return False
    return True


def runs_on_few(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    size: int | None,
    plate: str,
) -> bool:
    """Whether the program takes a part of the data for the whole: then it can be run piece by piece."""
    if not size or size == 1:
        return False
    few_args, few_kwargs = few_data(args, kwargs, size)
    try:
        traces = checks.run(model, guide, few_args, few_kwargs)
        for role, trace in zip(("guide", "model"), traces, strict=True):
            checks.compute(role, trace)  # masks and scales of all data do not fit a few
    except ValueError:
        return False  # running on all data tells whether the program is at fault
    frames = [frame for trace in traces for frame in plate_frames(trace, plate)]
    return bool(frames) and all(f.dim is not None and f.full_size == num_few(size) for f in frames)


def pieces(
    args: tuple, kwargs: Mapping[str, Any], size: int | None
) -> Iterator[tuple[tuple, Mapping[str, Any]]]:
    """The data, a bounded number at a time where `size` tells that they can be divided."""
    if size is None:
        yield args, kwargs
        return
    for start in range(0, size, PIECE):
        yield select_data(args, kwargs, size, slice(start, start + PIECE))


def read_structure(model_trace: Any, guide_trace: Any, plate: str, sum_out: bool) -> Structure:
    """Classify the sites of one trace of the model and, if there is a guide, of the guide."""
    model_sites, guide_sites = (
        dict(random_sites(model_trace)),
        dict(random_sites(guide_trace)) if guide_trace else {},
    )
    free = {name: site for name, site in model_sites.items() if not site["is_observed"]}
    enumerated = [
        name for name, site in free.items() if name not in guide_sites and summed_out(site, sum_out)
    ]
    drawn = [
        read_latent(s, guide_sites.get(n, s), plate) for n, s in free.items() if n not in enumerated
    ]
    auxiliary = [read_latent(s, s, plate, True) for s in guide_sites.values() if is_auxiliary(s)]
    everything = [*model_sites.values(), *guide_sites.values()]
    observed = [
        name for name, site in model_sites.items() if site["is_observed"] and not is_factor(site)
    ]
    subsampled = [
        n
        for t in (model_trace, guide_trace)
        if t
        for n, s in t.nodes.items()
        if s["type"] == "sample" and is_random_subsample(s)
    ]
    return Structure(
        latents=(*drawn, *auxiliary),
        enumerated=tuple(enumerated),
        observed=tuple(observed),
        factors=tuple(name for name, site in model_sites.items() if is_factor(site)),
        deterministic=tuple(
            n for n, s in model_trace.nodes.items() if s["type"] == "sample" and is_deterministic(s)
        ),
        subsampled=tuple(dict.fromkeys(subsampled)),
        nesting=max(
            (-f.dim for s in everything for f in s["cond_indep_stack"] if f.dim is not None),
            default=0,
        ),
        plate=plate,
        batched=any(frame.name == plate for s in everything for frame in s["cond_indep_stack"]),
        per_datum=bool(everything) and all(in_plate(s, plate) for s in everything),
        common_scale=one_scale(everything),
        has_guide=guide_trace is not None,
    )


def read_latent(site: Site, proposal: Site, plate: str, auxiliary: bool = False) -> Latent:
    """Describe one latent by its site in the model and in the guide."""
    return Latent(
        name=site["name"],
        support=site["fn"].support,
        batch_dim=site["value"].dim() - site["fn"].event_dim,
        event_dim=site["fn"].event_dim,
        local=in_plate(site, plate),
        auxiliary=auxiliary,
        reparameterised=bool(proposal["fn"].has_rsample),
        point_mass=isinstance(innermost(proposal["fn"]), dist.Delta),
        transported=bool(proposal["infer"].get("transported")),
    )


def masked_unlike(model_trace: Any, guide_trace: Any) -> tuple[str, ...]:
    """The latents whose masks in model and guide differ, so that what is masked does not cancel."""
    sites = dict(random_sites(model_trace))
    pairs = {name: (site, sites[name]) for name, site in random_sites(guide_trace) if name in sites}
    return tuple(
        name
        for name, pair in pairs.items()
        if not torch.equal(*torch.broadcast_tensors(*map(mask_of, pair)))
    )


def mask_of(site: Site) -> Tensor:
    """Where the density of a site counts."""
    mask = part_mask(site)[1]
    return torch.as_tensor(True if mask is None else mask, device=site["value"].device)


def seen_entries(site: Site) -> Tensor:
    """Which entries of a site's value no mask takes out, be it by a handler or anywhere in its distribution."""
    value, fn, masks = site["value"], site["fn"], [(site["mask"], site["fn"])]
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        masks.append((getattr(fn, "_mask", None), fn))
        fn = fn.base_dist
    seen = torch.ones_like(value, dtype=torch.bool)
    for mask, level in masks:
        if mask is not None:
            mask = torch.as_tensor(mask, device=value.device)
            seen &= mask.reshape(mask.shape + (1,) * (len(level.event_shape) if mask.dim() else 0))
    return seen


def summed_out(site: Site, everything: bool) -> bool:
    """Whether a latent that no guide draws is to be enumerated."""
    return is_enumerated(site) or (everything and site["fn"].has_enumerate_support)


def in_plate(site: Site, plate: str) -> bool:
    """Whether the site is inside the data plate."""
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def one_scale(sites: list[Site]) -> bool:
    """Whether all sites have the same `poutine.scale`; decided once here, since tensors must not be compared later."""
    scales = [site["scale"] for site in sites]
    if len({isinstance(scale, Tensor) for scale in scales}) > 1:
        return False  # a tensor on some sites alone may be another in other runs
    return all(
        scale is scales[0] or bool(torch.as_tensor(scale == scales[0]).all()) for scale in scales
    )


def plate_frames(trace: Any, plate: str) -> list[Any]:
    """The frames of a plate at all sites of a trace."""
    return [
        frame
        for _, site in random_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.name == plate
    ]


def data_size(trace: Any, plate: str) -> int | None:
    """Number of data in the data plate, or None."""
    return next((frame.full_size for frame in plate_frames(trace, plate)), None)


def few_data(
    args: tuple, kwargs: Mapping[str, Any], size: int | None
) -> tuple[tuple, dict[str, Any]]:
    """The first few data: enough to learn how the program behaves."""
    return select_data(args, kwargs, size, slice(0, num_few(size or 0)))


def num_few(size: int) -> int:
    """How many data are a few: at most half of them."""
    return max(1, min(PROOF_DATA, size // 2))


def prove_vectorisation(bound: Bound) -> Structure:
    """Return the structure with the way of running many particles that gives what running them one by one gives."""
    structure = bound.structure
    if not structure.latents:
        return structure
    failures = []
    for guide_runs, model_runs in (
        ("plate", "plate"),
        ("plate", "vmap"),
        ("vmap", "vmap"),
        ("vmap", "plate"),
    ):
        candidate = replace(
            bound, structure=replace(structure, guide_runs=guide_runs, model_runs=model_runs)
        )
        try:
            error = vectorisation_error(candidate)
        except (
            RuntimeError,
            ValueError,
            IndexError,
            TypeError,
            AssertionError,
            NotImplementedError,
        ) as failure:
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        if not error:
            return candidate.structure
        failures.append(f"guide by {guide_runs}, model by {model_runs}: {error}")
    raise ValueError(
        "the program cannot run several particles at once: neither inside an outer plate nor under torch.func.vmap does "
        f"it give what single runs give ({'; '.join(failures)}). Let its operations broadcast over dimensions on the "
        "left, e.g. (w * x).sum(-1) in place of x @ w"
    )


def vectorisation_error(bound: Bound) -> str:
    """Compare log densities of particles run together and one by one; empty where they agree."""
    bound.draw(1)  # fails where `z[1]` takes a particle for an entry
    values = bound.draw(PROOF_PARTICLES).values
    together = (bound.log_joint(values).total, bound.log_guide(values))
    for i in range(PROOF_PARTICLES):
        one = {
            name: value[i] if bound.structure.find(name) else value
            for name, value in values.items()
        }
        alone = bound.log_densities_of_one(one)
        for name, many, single in zip(("model", "guide"), together, alone, strict=True):
            if many[i].shape != single.shape or not torch.allclose(
                many[i], single, 1e-3, 1e-3, equal_nan=True
            ):
                return f"log density of the {name} differs"
    return ""
