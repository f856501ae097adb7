"""Inspection of a program by running it once.

It learns the program's structure, and says clearly what is wrong with it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from ppl_dgm.program import checks, first_run
from ppl_dgm.program.arguments import select_data, tensors_of
from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.crosscheck import unlike_pyro
from ppl_dgm.program.division import PROOF_DATA, lazy_division, learn_division
from ppl_dgm.program.energies import find_energies
from ppl_dgm.program.handlers import Prior, SizedPlates
from ppl_dgm.program.independence import are_independent
from ppl_dgm.program.isolation import undisturbed, undone, undone_on_error
from ppl_dgm.program.log_densities import seen_entries
from ppl_dgm.program.observed import Observed
from ppl_dgm.program.parameters import ScopedCallable
from ppl_dgm.program.plates import data_size, in_plate
from ppl_dgm.program.pyro_patches import forgiving_factors, right_draws, unvalidated
from ppl_dgm.program.sites import (
    Site,
    is_auxiliary,
    is_deterministic,
    is_enumerated,
    is_factor,
    is_random_subsample,
    placed_sites,
    random_sites,
)
from ppl_dgm.program.structure import Division, Latent, Structure
from ppl_dgm.program.supports import innermost, support_of
from ppl_dgm.program.vectorisation import prove_vectorisation

__all__ = ["Examination", "examine", "inspect"]

PIECE = 1024
LARGE = 64 * 2**20  # bytes of data that are run at once


@dataclass(frozen=True)
class Examination:
    """Result of examining a program at its data.

    It tells the structure, the number of data, and what was observed.

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
    training: bool = False,
) -> Structure:
    """Find the structure of a model and guide.

    They are run at their data. See `examine`.
    """
    return examine(model, guide, args, kwargs, plate, sum_out, training=training).structure


def examine(
    model: Callable,
    guide: Callable | None,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    plate: str = "data",
    sum_out: bool = False,
    shared: Collection[str] = (),
    particles: int | None = None,
    training: bool = False,
) -> Examination:
    """Check a model and guide and find their structure.

    They must fit each other and all of their data.

    Runs both once on all of the data with all of Pyro's checks on, then proves that running several
    particles at once gives what running them one by one gives, unless `particles` is 1. Whether
    parts of the data can stand for the whole is tried when somebody asks; data too large to be run
    at once, of programs made of modules, are run in parts. With `sum_out` every finite discrete
    latent that the guide lacks is enumerated, not only those marked `infer={"enumerate":
    "parallel"}`. `shared` names the arguments that all data share. The structure is that of
    evaluation mode, or with `training` that of the modes in which the modules are, run once more.

    The runs leave nothing behind but the parameters that the first one creates, and a run that
    fails not even those.

    Raises:
        ValueError: naming the site, what was expected and the cure.
    """
    kwargs, proposal = kwargs or {}, guide or Prior(model)
    look = partial(look_at, model, guide, plate, sum_out)
    observed = Observed(lambda *given: first_run.run(model, proposal, *given)[1])
    with (
        undone_on_error(model, guide),
        undisturbed(model, guide) as isolation,
        pyro.validation_enabled(True),
        SizedPlates(),
        right_draws(),
        first_run.blaming_nan(args, kwargs),
    ):
        division = lazy_division(model, proposal, args, kwargs, plate, shared)
        structures, few = [], (args, kwargs)
        for part in portions(model, proposal, args, kwargs, plate, division):
            found, guide_trace, model_trace = look(*part)
            first_run.check_nan_masked(*part, model_trace)
            observed.add(found, model_trace, *part)
            unmasked = masked_unlike(model_trace, guide_trace) if guide else ()
            energies = find_energies(model, model_trace, *part)
            structures.append(
                replace(found, division=division, unmasked=unmasked, energies=energies)
            )
        whole = len(structures) == 1
        size = data_size(model_trace, plate) if whole else leading_size(args, kwargs)
        if not whole:
            few = select_data(*few, size, slice(PROOF_DATA), division.held or ())
        num_data = PROOF_DATA if not whole else size
        bound = Bound(model, proposal, structures[0], *few, num_data=num_data)
        structure = prove(bound, particles, guide_trace, model_trace)
        structure = replace(structure, stretched=tuple(sorted(observed.stretched)))
        if training:
            with isolation.in_given_modes(), undone(model, guide):
                used = structure_in_training(bound, structure, *look(*few))
            structure = structure.with_sites_of(used)
    return Examination(structure, size, observed.num_dims, observed.digest)


def look_at(
    model: Callable,
    guide: Callable | None,
    plate: str,
    sum_out: bool,
    args: tuple,
    kwargs: Mapping[str, Any],
) -> tuple[Structure, Any, Any]:
    """Run a program once, and check what it does.

    Returns its structure and the traces of guide (or prior) and model.
    """
    proposal = guide or Prior(model)
    guide_trace, model_trace = first_run.run(model, proposal, args, kwargs)
    drawn = guide_trace if guide else None
    found = read_structure(model_trace, drawn, plate, sum_out)
    again = partial(first_run.run, model, proposal, args, kwargs)
    alone = partial(first_run.traced, model, args, kwargs)
    checks.check(found, model_trace, drawn, again, alone)
    return found, guide_trace, model_trace


def prove(bound: Bound, particles: int | None, *traces: Any) -> Structure:
    """Find out which data and particles run together.

    The first runs gave the traces. A single particle is not tried with more.
    """
    with unvalidated(), forgiving_factors():  # as every proof does
        if not are_independent(bound):
            bound = replace(bound, structure=replace(bound.structure, per_datum=False))
        if not bound.structure.has_guide and bound.is_entangled():
            bound = replace(bound, structure=bound.structure.without_paths())
        if particles == 1:
            return bound.structure.untried()
        return prove_vectorisation(bound, *traces)


def structure_in_training(
    bound: Bound, evaluated: Structure, found: Structure, guide_trace: Any, model_trace: Any
) -> Structure:
    """Complete the structure of a run in training.

    What it shares with that in evaluation mode is taken from there.
    """
    energies = find_energies(bound.model, model_trace, bound.args, bound.kwargs)
    used = replace(
        found,
        unmasked=evaluated.unmasked,
        # Factors of training alone are terms of a loss, not of the density.
        energies=tuple(name for name in energies if name in evaluated.factors),
        noisy_guide=replace(bound, structure=found).guide_is_noisy(),
    )
    drawn = guide_trace if found.has_guide else None
    unlike = unlike_pyro(replace(bound, structure=used), drawn, model_trace)
    return replace(used, unlike_pyro=unlike)


def leading_size(args: tuple, kwargs: Mapping[str, Any]) -> int | None:
    """Return the first dimension of the first tensor argument.

    It is the number of data, if the data plate agrees.
    """
    return next((tensor.shape[0] for tensor in tensors_of(args, kwargs) if tensor.dim()), None)


def prepared(*callables: Any) -> bool:
    """Return whether a first run may use partial data.

    It may where a first run cannot shape the program's state.

    Functions make parameters (`pyro.param("loc", torch.zeros(len(x)))`) and autoguides plates at
    their first run.
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


def portions(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    plate: str,
    division: Division,
) -> Iterator[tuple[tuple, Mapping[str, Any]]]:
    """Yield the data at once, or in parts if large.

    They are divided where they are too large for one run and the program can be divided.
    """
    size = leading_size(args, kwargs)
    large = sum(tensor.nbytes for tensor in tensors_of(args, kwargs)) > LARGE
    if not (size and large and prepared(model, guide)):
        yield args, kwargs
        return
    head = select_data(args, kwargs, size, slice(2 * PROOF_DATA))
    held = learn_division(model, guide, *head, plate)
    if held is None:
        yield args, kwargs
        return
    division.settle(held)
    for start in range(0, size, PIECE):
        yield select_data(args, kwargs, size, slice(start, start + PIECE), held)


def read_structure(model_trace: Any, guide_trace: Any, plate: str, sum_out: bool) -> Structure:
    """Read a program's structure from its traces.

    There is one trace of the model and, if there is a guide, one of the guide.
    """
    model_sites, guide_sites = (
        dict(random_sites(model_trace)),
        dict(random_sites(guide_trace)) if guide_trace else {},
    )
    free = {name: site for name, site in model_sites.items() if not site["is_observed"]}
    enumerated = [
        name
        for name, site in free.items()
        if name not in guide_sites
        and (is_enumerated(site) or (sum_out and site["fn"].has_enumerate_support))
    ]
    drawn = [
        read_latent(s, guide_sites.get(n, s), plate) for n, s in free.items() if n not in enumerated
    ]
    auxiliary = [read_latent(s, s, plate, True) for s in guide_sites.values() if is_auxiliary(s)]
    everything = [*model_sites.values(), *guide_sites.values()] or placed_sites(model_trace)
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
        discrete=tuple(n for n in observed if support_of(model_sites[n]["fn"]).is_discrete),
    )


def read_latent(site: Site, proposal: Site, plate: str, auxiliary: bool = False) -> Latent:
    """Describe a latent by its model and guide sites."""
    return Latent(
        name=site["name"],
        support=support_of(site["fn"]),
        batch_dim=site["value"].dim() - site["fn"].event_dim,
        event_dim=site["fn"].event_dim,
        local=in_plate(site, plate),
        auxiliary=auxiliary,
        reparameterised=bool(proposal["fn"].has_rsample),
        point_mass=isinstance(innermost(proposal["fn"]), dist.Delta),
        transported=bool(proposal["infer"].get("transported")),
    )


def masked_unlike(model_trace: Any, guide_trace: Any) -> tuple[str, ...]:
    """List latents whose masks differ in model and guide.

    What is masked does not cancel for these. They are drawn ones.

    A point mass that is no image of noise has nothing to cancel: its prior counts where the model
    says so.
    """
    sites, guides = dict(random_sites(model_trace)), dict(random_sites(guide_trace))
    images = any(map(is_auxiliary, guides.values()))
    pairs = {
        name: (site, sites[name])
        for name, site in guides.items()
        if name in sites and (images or not isinstance(innermost(site["fn"]), dist.Delta))
    }
    return tuple(
        name
        for name, pair in pairs.items()
        if not torch.equal(*torch.broadcast_tensors(*map(seen_entries, pair)))
    )


def one_scale(sites: list[Site]) -> bool:
    """Return whether all sites have the same scale.

    The scale is that of `poutine.scale`. This is decided once, since tensors must not be compared
    later.
    """
    scales = [site["scale"] for site in sites]
    if len({isinstance(scale, Tensor) for scale in scales}) > 1:
        return False  # a tensor on some sites alone may be another in other runs
    return all(
        scale is scales[0] or bool(torch.as_tensor(scale == scales[0]).all()) for scale in scales
    )
