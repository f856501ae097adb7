"""First run of a program, and whom its errors blame.

Each error names the half of the program, what it was given, and the cure.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.poutine as poutine
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_dgm.program.guide_checks import check_same_site
from ppl_dgm.program.handlers import Prior
from ppl_dgm.program.log_densities import count_observed, log_prob_of
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.sites import is_summed_out, random_sites
from ppl_dgm.program.whole_parameters import rounding_refused

__all__ = [
    "blame",
    "blaming_nan",
    "check_nan_masked",
    "cure_of_nesting",
    "describe",
    "run",
    "traced",
]

_OTHER_ARGUMENTS = ("unexpected keyword argument", "positional argument")  # in Python's errors
_UNDEFINED = "to satisfy the constraint"  # in torch's errors about a distribution's parameters
MAX_NESTING = 5  # plates of a program that runs only under enumeration
MAX_DRAWS = 8  # of latents, for a program that is undefined at some of them


def run(
    model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Trace guide and model once.

    Latents are drawn anew where the program is undefined at those drawn: whether it is taken must
    not depend on the generator. Estimates give such draws their alarm. An error names the half of
    the program that failed and the data that it was given.
    """
    for _ in range(MAX_DRAWS - 1):
        try:
            return run_once(model, guide, args, kwargs)
        except ValueError as error:
            if _UNDEFINED not in str(error):
                raise
    return run_once(model, guide, args, kwargs)


def run_once(
    model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Trace guide and model at one draw of the latents."""
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
        with rounding_refused():
            return call()
    except Exception as error:  # the user's own code may raise anything
        leaves = tree_leaves((args, dict(kwargs)))
        given = ", ".join(map(describe, leaves)) or "no data"
        reason = str(error).partition("Trace Shapes:")[0].strip()
        raise ValueError(
            f"the {role} failed on its first run with {given}: {type(error).__name__}: {reason}. "
            f"{cure_of_failure(reason, leaves)}{cure_of_nesting(args)}"
        ) from error


def cure_of_failure(reason: str, leaves: list[Any]) -> str:
    """What to do about a run that failed."""
    if "ImproperUniform" in reason:
        return "Give that latent a proper prior, or a guide that draws it"
    if any(part in reason for part in _OTHER_ARGUMENTS):
        return (
            "Every column or tensor of the data is an argument of the program: leave out those "
            "that it does not take, e.g. data[['x', 'y']] of a table, or images without labels. "
            "Families of vectors take the matrix of a table, data.to_numpy()"
        )
    empty = any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves)
    cure = "Check the shape, dtype and device of the data against what the program expects"
    return f"{cure}: they hold no datum" if empty else cure


def cure_of_nesting(args: tuple) -> str:
    """What to do with a lone dict or tuple."""
    if len(args) != 1 or not isinstance(args[0], (Mapping, tuple)):
        return ""
    stars = "**" if isinstance(args[0], Mapping) else "*"
    kind = type(args[0]).__name__
    return (
        f". The {kind} is one argument here; to give its items as arguments write {stars}data, or "
        "ppl_dgm.Dataset(data) of tensors"
    )


def describe(leaf: Any) -> str:
    """Describe a tensor by shape, dtype and device.

    Anything else is shown by its repr.
    """
    if isinstance(leaf, Tensor):
        return f"Tensor{tuple(leaf.shape)} of {leaf.dtype} on {leaf.device}"
    return repr(leaf)[:40]


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
    real = ((name, x) for name, x in named if isinstance(x, Tensor) and x.is_floating_point())
    return [(name, value) for name, value in real if bool(value.isnan().any())]


def check_nan_masked(args: tuple, kwargs: Mapping[str, Any], model_trace: Any) -> None:
    """Refuse NaN in the data that reach a density."""
    if nan_arguments(args, kwargs):
        sites = [site for _, site in random_sites(model_trace)]
        with unvalidated():
            if any(bool(log_prob_of(site, 1.0).isnan().any()) for site in sites):
                refuse_nan(args, kwargs)
