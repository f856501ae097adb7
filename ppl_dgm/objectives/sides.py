"""Data and draws, for a critic to tell apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.poutine as poutine
from torch import Tensor

from ppl_dgm.program.sampling import Uncondition
from ppl_dgm.program.sites import is_deterministic

__all__ = ["Sides", "draw", "draw_sides"]


@dataclass(frozen=True)
class Sides:
    """Data and draws, with the program's other arguments.

    Data and draws are both `[N, *event]`.
    """

    real: Tensor
    fake: Tensor
    rest: tuple[tuple, dict[str, Any]] = field(default=((), {}))


def draw_sides(model: Callable, site: str, args: tuple, kwargs: Mapping[str, Any]) -> Sides:
    """Draw as many data as the model is given.

    The draws have a path gradient.

    Raises:
        ValueError: no data, no site of that name, draws of another shape or without a path
            gradient.
    """
    if site in kwargs:
        real, rest = kwargs[site], (args, {k: v for k, v in kwargs.items() if k != site})
    elif args:
        real, rest = args[0], (args[1:], dict(kwargs))
    else:
        raise ValueError(
            f"the program was given no data for {site!r}; pass them as its first argument or by "
            "name"
        )
    fake = draw(model, site, args, kwargs)
    if fake.shape != real.shape:
        raise ValueError(
            f"the program draws {tuple(fake.shape)} at {site!r} but the data are "
            f"{tuple(real.shape)}; expected as many draws as data: open pyro.plate('data', len(x))"
        )
    return Sides(real.to(fake), fake, rest)


def draw(model: Callable, site: str, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """Draw a site of a model from its prior.

    The draw has a path gradient.
    """
    trace: Any = poutine.trace(Uncondition()(model)).get_trace(*args, **kwargs)
    nodes = trace.nodes
    found = nodes.get(site)
    if found is None or found["type"] != "sample":
        names = [name for name, node in nodes.items() if node["type"] == "sample"]
        raise ValueError(f"the program has no site {site!r}, only {names}; name it: site=...")
    if not (is_deterministic(found) or found["fn"].has_rsample):
        raise ValueError(
            f"the program draws {site!r} from a {type(found['fn']).__name__} without a path "
            "gradient, so that a critic cannot teach it; use a distribution with rsample, such as "
            "Normal or RelaxedBernoulli, or pyro.deterministic"
        )
    return found["value"]
