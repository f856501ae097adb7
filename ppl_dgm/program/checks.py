"""Errors of programs that do not fit their data.

A program may also not fit itself. Each error names the site and the cure.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.util import check_site_shape
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_dgm.program.bound_program import Prior
from ppl_dgm.program.inverses import check_inverse
from ppl_dgm.program.log_densities import count_observed, log_prob_of, seen_entries, unmasked_value
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.sites import (
    Site,
    is_auxiliary,
    is_factor,
    is_point_mass,
    is_summed_out,
    random_sites,
)
from ppl_dgm.program.structure import Structure
from ppl_dgm.program.supports import innermost, moves, support_of

__all__ = [
    "blame",
    "blaming_nan",
    "check",
    "check_nan_masked",
    "refuse_implicit",
    "refuse_point_masses",
    "run",
    "traced",
]

NUM_RERUNS = 8  # in which a support that moves with the latents shows it
MAX_NESTING = 5  # plates of a program that runs only under enumeration


def run(
    model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Trace guide and model once.

    An error names the half of the program that failed and the data that it was given.
    """
    own = isinstance(getattr(guide, "fn", guide), Prior)
    role = "model" if own else "guide"
    try:
        guide_trace = blame(role, lambda: traced(guide, args, kwargs), args, kwargs)
    except ValueError:
        trace = run_enumerated(model, args, kwargs) if own else None
        if trace is None:
            raise
        return trace, trace
    replayed = poutine.replay(model, trace=guide_trace)
    try:
        return guide_trace, blame("model", lambda: traced(replayed, args, kwargs), args, kwargs)
    except ValueError:
        trace = run_enumerated(replayed, args, kwargs)
        if trace is None:
            check_latents_apart(model, guide_trace, args, kwargs)
            raise
        return guide_trace, trace


def traced(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Trace one half of a program.

    Observed booleans and integers are held as floating-point numbers.
    """
    return count_observed(poutine.trace(model).get_trace(*args, **kwargs))


def run_enumerated(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Trace a model with all its discrete latents enumerated.

    The result is None where it does not run so either, or where nothing is enumerated.
    """
    model = poutine.enum(model, first_available_dim=-1 - MAX_NESTING)
    try:
        trace = traced(model, args, kwargs)
    except Exception:  # its plain run tells what is wrong
        return None
    return trace if any(is_summed_out(site) for _, site in random_sites(trace)) else None


def check_latents_apart(
    model: Callable, guide_trace: Any, args: tuple, kwargs: Mapping[str, Any]
) -> None:
    """Compare the guide's latents with those the model draws.

    This is for models that fail on the guide's latents.
    """
    trace = blame("model", lambda: poutine.trace(model).get_trace(*args, **kwargs), args, kwargs)
    own = dict(random_sites(trace))
    for name, site in random_sites(guide_trace):
        if name in own and not own[name]["is_observed"]:
            check_same_site(name, own[name], site)


def blame(role: str, call: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Turn a program's failure into a ValueError.

    The message says what the program was called with.
    """
    try:
        return call()
    except Exception as error:  # the user's own code may raise anything
        leaves = tree_leaves((args, dict(kwargs)))
        given = ", ".join(map(describe, leaves)) or "no data"
        reason = str(error).partition("Trace Shapes:")[0].strip()
        raise ValueError(
            f"the {role} failed on its first run with {given}: {type(error).__name__}: {reason}. "
            f"{cure_of_failure(reason, leaves)}"
        ) from error


def cure_of_failure(reason: str, leaves: list[Any]) -> str:
    """What to do about a run that failed."""
    if "ImproperUniform" in reason:
        return "Give that latent a proper prior, or a guide that draws it"
    empty = any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves)
    cure = "Check the shape, dtype and device of the data against what the program expects"
    return f"{cure}: they hold no datum" if empty else cure


def describe(leaf: Any) -> str:
    """Describe a tensor by shape, dtype and device.

    Anything else is shown by its repr.
    """
    if isinstance(leaf, Tensor):
        return f"Tensor{tuple(leaf.shape)} of {leaf.dtype} on {leaf.device}"
    return repr(leaf)[:40]


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


@contextmanager
def blaming_nan(args: tuple, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Blame NaN in the data for a failing block.

    A program that masks them does not fail.
    """
    try:
        yield
    except ValueError as error:
        refuse_nan(args, kwargs, error)
        raise


def refuse_nan(args: tuple, kwargs: Mapping[str, Any], cause: Exception | None = None) -> None:
    """Refuse the first argument that holds NaN.

    Raises ValueError.
    """
    for name, leaf in nan_arguments(args, kwargs):
        raise ValueError(
            f"{name} of the program, {describe(leaf)}, has {int(leaf.isnan().sum())} NaN that no "
            "mask takes out; expected finite data. Remove or impute them, or pass a mask to the "
            "program (poutine.mask)"
        ) from cause


def nan_arguments(args: tuple, kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """The arguments that hold NaN, with their names."""
    named = [(f"argument {i}", leaf) for i, leaf in enumerate(tree_leaves(args))]
    named += [(f"argument {n!r}", leaf) for n, v in kwargs.items() for leaf in tree_leaves(v)]
    return [(name, leaf) for name, leaf in named if isinstance(leaf, Tensor) and has_nan(leaf)]


def has_nan(value: Tensor) -> bool:
    """Whether a tensor holds NaN."""
    return value.is_floating_point() and bool(value.isnan().any())


def check_nan_masked(args: tuple, kwargs: Mapping[str, Any], model_trace: Any) -> None:
    """Refuse NaN in the data that reach a density."""
    if nan_arguments(args, kwargs):
        sites = [site for _, site in random_sites(model_trace)]
        with unvalidated():
            if any(bool(log_prob_of(site, 1.0).isnan().any()) for site in sites):
                refuse_nan(args, kwargs)


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
    raise ValueError(
        f"the program has no observed site and no factor; its sample sites are {sites}. Pass the "
        "data on with obs=..., e.g. pyro.sample('x', ..., obs=x), and call the program with the "
        "data"
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
    if not covered or narrower(guide_fn, model_fn):
        raise ValueError(
            f"the support of latent {name!r} is {model_support} in the model but "
            f"{guide_support} in the guide; expected the guide to cover exactly the model's. "
            "Use a guide distribution with that support, or transform it"
        )


def narrower(guide_fn: Any, model_fn: Any) -> bool:
    """Return whether the guide's support misses draws of the prior.

    The prior is the model's.
    """
    try:
        return not bool(support_of(guide_fn).check(model_fn.sample()).all())
    except NotImplementedError:
        return False


def compute(role: str, trace: Any) -> None:
    """Compute the log densities of a trace.

    An error names the half of the program that failed.
    """
    given = {name: site["value"] for name, site in random_sites(trace) if site["is_observed"]}
    with unvalidated():
        blame(role, trace.compute_log_prob, (), given)


def check_shapes(role: str, trace: Any, structure: Structure) -> None:
    """Check that every batch dimension is declared by a plate."""
    compute(role, trace)
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
