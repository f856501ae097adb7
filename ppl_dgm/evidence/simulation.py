"""Simulation of data in place of a program's observed arguments."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ppl_dgm.program import Bound
from ppl_dgm.program.particles import Values
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.program.seeding import seeded

__all__ = ["simulate"]


def simulate(bound: Bound) -> tuple[Values, tuple, dict[str, Any]]:
    """Draw latents and data jointly from the program.

    Returns latent values `[1, *shape]`, and the arguments with simulated data in them.

    Raises:
        ValueError: for factors, which cannot be drawn, and observed values that are no argument of
            the program.
    """
    structure = bound.structure
    if structure.factors:
        raise ValueError(
            f"the program has factors {list(structure.factors)}, so that no data can be simulated "
            "from it; bidirectional Monte Carlo needs a program of sample statements. Use AIS and "
            "SMC and compare them"
        )
    drawing = partial(draw_sites, bound.model, structure, 1, bound.args, bound.kwargs)
    draws = bound._evaluate(drawing)
    leaves, spec = tree_flatten((bound.args, dict(bound.kwargs)))
    simulated: dict[int, Tensor] = {}
    for name in structure.observed:
        place = observed_argument(bound, name, leaves, spec)
        simulated[place] = in_dtype_of(leaves[place], draws[name][0])
    args, kwargs = tree_unflatten([simulated.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
    check_no_covariates(bound, replace(bound, args=args, kwargs=kwargs), draws)
    return draws, args, kwargs


def in_dtype_of(leaf: Tensor, drawn: Tensor) -> Tensor:
    """Shape simulated data as given ones.

    They get the dtype too where it holds them without loss.
    """
    drawn = drawn.reshape(leaf.shape)
    held = drawn.to(leaf.dtype)
    return held if torch.equal(held.to(drawn.dtype), drawn) else drawn


def check_no_covariates(given: Bound, simulated: Bound, draws: Values) -> None:
    """Refuse observed data that the program also conditions on.

    Simulated data would change the distribution that they were drawn from.
    """
    latents = {latent.name: draws[latent.name][0] for latent in given.structure.model_latents}
    before, after = (
        bound._evaluate(partial(bound._trace, bound.model, latents, None)).nodes
        for bound in (given, simulated)
    )
    for name in given.structure.observed:
        value = after[name]["value"]
        densities = [trace[name]["fn"].log_prob(value) for trace in (before, after)]
        if not torch.allclose(*densities, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"the distribution of site {name!r} depends on the values that are observed there, "
                "so that simulated data would change it; give what it depends on as an argument "
                "of its own"
            )


def observed_argument(bound: Bound, name: str, leaves: list[Any], spec: TreeSpec) -> int:
    """Find the number of the argument that a site observes.

    The arguments are exchanged one after the other, to see which one changes the observed value.

    Raises:
        ValueError: where no argument changes the observed value alone, or several do.
    """
    value = observed_value(bound, name)
    found = [
        place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.numel() == value.numel() and leaf.numel()
        and follows(bound, name, value, leaves, place, spec)
    ]  # fmt: skip
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"the value that site {name!r} observes comes from {len(found)} arguments, so that it "
            "is not clear where simulated data belong; pass the observed data as one argument of "
            "its own"
        )
    raise ValueError(
        f"the value that site {name!r} observes is not among the program's arguments, so that "
        "simulated data cannot take its place; pass it as an argument and observe it as it is: "
        "pyro.sample(..., obs=x)"
    )


def follows(
    bound: Bound, name: str, value: Tensor, leaves: list[Any], place: int, spec: TreeSpec
) -> bool:
    """Check whether a site observes an argument unchanged.

    If the values of the argument are reordered, so are those that the site observes.
    """
    leaf = leaves[place]
    if not torch.equal(leaf.flatten().to(value.dtype), value.flatten()):
        return False
    other = another(leaf)
    args, kwargs = tree_unflatten([*leaves[:place], other, *leaves[place + 1 :]], spec)
    try:
        seen = observed_value(replace(bound, args=args, kwargs=kwargs), name)
    except Exception:  # the program may refuse values that it was not given
        return False
    return torch.equal(other.flatten().to(seen.dtype), seen.flatten())


def another(leaf: Tensor) -> Tensor:
    """Make other values of the same kind and shape.

    The values are rotated by one place or, where that changes nothing, the first one is replaced.
    """
    turned = leaf.flatten().roll(1)
    if torch.equal(turned, leaf.flatten()):
        turned = turned.clone()
        turned[0] = ~turned[0] if leaf.dtype == torch.bool else 1 - turned[0]
    return turned.reshape(leaf.shape)


def observed_value(bound: Bound, name: str) -> Tensor:
    """The value that a site observes."""
    with seeded(0, bound.device):
        return bound.model_trace().nodes[name]["value"]
