"""Flows whose draws explode.

A fit sees what a flow does at the data. Where couplings meet noise that no datum has, many layers
may multiply it, and some draws come out as 1e19 or infinite.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program.supports import innermost
from ppl_dgm.transforms.bijection import Bijection, push

__all__ = ["warn_of_explosions"]

FAR_OUT = 1e4  # times what the farthest noise is from the middle, in spreads
FEWEST = 8  # draws that tell a spread
Growth = tuple[str, Tensor, Tensor]  # a layer, and the sizes of events before and after it


@torch.no_grad()
def warn_of_explosions(name: str, fn: Any, draws: Tensor) -> None:
    """Warn of infinite draws, and of some far beyond others.

    Draws are `[num_samples, *batch, *event]`. Unless there is something to tell, no layer is run.
    """
    flow = innermost(fn)
    if not isinstance(flow, TransformedDistribution) or not draws.is_floating_point():
        return
    finite = flow_events(flow, draws.isfinite())
    if not bool(finite.all()):
        lost = "are infinite or NaN"
        tell(name, flow, ~finite, lost)
    elif len(draws) >= FEWEST and bool((far := far_out(flow, draws)).any()):
        lost = f"lie more than {FAR_OUT:.0e} times as far from the median as its noise"
        tell(name, flow, far, lost)


def tell(name: str, flow: TransformedDistribution, where: Tensor, lost: str) -> None:
    """Say which share of events is lost, and where."""
    share = 100 * where.double().mean().item()
    warnings.warn(
        f"{share:.3g} % of the draws of site {name!r} {lost}{culprit(flow)}: the fit has seen no "
        "data where such noise leads, and nothing holds the flow there. Its density at the data "
        "stands. Fit it with fewer layers, weight decay (torch.optim.AdamW), a smaller rate or "
        "data without outliers, or leave these draws out",
        UserWarning,
        stacklevel=2,
    )


def far_out(flow: TransformedDistribution, draws: Tensor) -> Tensor:
    """Tell which events lie far beyond the others."""
    base = flow.base_dist
    with unmoved_generators(draws.device):
        most = in_spreads(base.sample()).amax().clamp_min(1.0)
    return ~flow_events(flow, in_spreads(draws) <= FAR_OUT * most)


def in_spreads(draws: Tensor) -> Tensor:
    """Distances from the median, in median distances.

    Zero where more than half of the draws are one number.
    """
    away = (draws - draws.median(0).values).abs()
    spread = away.median(0).values
    return torch.where(spread > 0, away / spread, 0.0)


def flow_events(flow: TransformedDistribution, each: Tensor) -> Tensor:
    """Whether all numbers of an event have a property."""
    event_dim = len(flow.event_shape)
    return each.flatten(-event_dim).all(-1) if event_dim else each


def culprit(flow: TransformedDistribution) -> str:
    """Name the layer that enlarges the largest draw most."""
    with unmoved_generators(), growths(flow.transforms) as found:
        noise: Any = flow.base_dist.sample()
        x, _ = push(flow.transforms, noise, len(flow.base_dist.event_shape))
    sizes = size_of(x).nan_to_num(torch.inf)
    worst = sizes.argmax()
    if not found or sizes[worst] < FAR_OUT:
        return ""
    grown = [(name, before[worst].item(), after[worst].item()) for name, before, after in found]
    name, before, after = max(grown, key=lambda step: step[2] / max(step[1], 1.0))
    return (
        f", most in {name}, where events go from {before:.2g} to {after:.2g} times the usual size"
    )


@contextmanager
def growths(transforms: Any) -> Iterator[list[Growth]]:
    """Note how large events are before and after each layer."""
    found: list[Growth] = []
    with ExitStack() as stack:
        for place, transform in enumerate(transforms):
            module = getattr(transform, "bijection", transform)
            for name, part in layers(f"transforms[{place}]", module):
                stack.enter_context(noting(name, part, found))
        yield found


def layers(name: str, module: Any) -> Iterator[tuple[str, Bijection]]:
    """The bijections in a module that hold no others."""
    if not isinstance(module, Bijection):
        return
    for path, part in module.named_modules(prefix=name):
        inner = [child for child in part.modules() if isinstance(child, Bijection)]
        if isinstance(part, Bijection) and len(inner) == 1:
            yield f"{type(part).__name__} {path}", part


@contextmanager
def noting(name: str, layer: Bijection, found: list[Growth]) -> Iterator[None]:
    """Note the sizes of events before and after one layer."""
    ways = ("call_and_log_det", "inverse_and_log_det")

    def noted(way: Any) -> Any:
        def run(x: Tensor, *context: Any) -> Any:
            y, log_det = way(x, *context)
            found.append((name, size_of(x), size_of(y)))
            return y, log_det

        return run

    for way in ways:
        vars(layer)[way] = noted(getattr(layer, way))
    try:
        yield
    finally:
        for way in ways:
            del vars(layer)[way]


def size_of(x: Tensor) -> Tensor:
    """Largest number of each row, beside the usual one."""
    sizes = x.reshape(len(x), -1).abs().amax(-1)
    return sizes / sizes.median().clamp_min(torch.finfo(x.dtype).tiny)
