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

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program.supports import innermost, is_real
from ppl_dgm.transforms import FlowDistribution, Inverse, MaskedAutoregressive
from ppl_dgm.transforms.bijection import Bijection, Conditioned, is_foreign, pull, push

__all__ = ["warn_of_explosions"]

FAR_OUT = 1e4  # times what the farthest noise is from the middle, in spreads
SCORED = 16  # draws
LARGE_GAP = 50.0  # nats below the least likely noise
FEWEST, ENOUGH = 8, 1000  # draws that tell a spread
Growth = tuple[str, Tensor, Tensor]  # a layer, and the sizes of events before and after it


@torch.no_grad()
def warn_of_explosions(name: str, fn: Any, draws: Tensor) -> None:
    """Warn of infinite draws, and of some far beyond others.

    Draws are `[num_samples, *batch, *event]`. Unless there is something to tell, a few of them are
    scored, where that takes one pass.
    """
    flow = innermost(fn)
    if not isinstance(flow, FlowDistribution) or not draws.is_floating_point():
        return
    finite = flow_events(flow, draws.isfinite())
    if not bool(finite.all()):
        lost = "are infinite or NaN"
        tell(name, flow, ~finite, lost)
    elif len(draws) >= FEWEST and bool((far := far_out(flow, draws)).any()):
        lost = f"lie more than {FAR_OUT:.0e} times as far from the median as its noise"
        tell(name, flow, far, lost)
    elif bool((strays := strayed(flow, draws)).any()):
        tell(name, flow, strays, "are scored as made from noise that the base does not make")


def tell(name: str, flow: FlowDistribution, where: Tensor, lost: str) -> None:
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


def far_out(flow: FlowDistribution, draws: Tensor) -> Tensor:
    """Tell which events lie far beyond the others.

    They are `[num_samples, *batch]`, and noise that lies as far excuses them.
    """
    centre, spread = middle(draws)
    ends = torch.stack([draws.amin(0) - centre, draws.amax(0) - centre]).abs()
    if bool((ends <= FAR_OUT * spread).all()):
        return ends.new_zeros((), dtype=torch.bool)
    with unmoved_generators(draws.device):
        noise: Any = flow.base_dist.sample()
    usual, width = middle(noise)
    most = ((noise - usual).abs() / width).amax().clamp_min(1.0)
    return ~flow_events(flow, (draws - centre).abs() <= FAR_OUT * most * spread)


def strayed(flow: FlowDistribution, draws: Tensor) -> Tensor:
    """Tell which events lead back to strange noise.

    Among very large numbers all digits of the noise are lost.
    """
    one: Any = getattr(flow, "origin", flow)
    base: Any = one.base_dist  # of one datum, or at each context
    slow = any(map(slow_to_score, flow.transforms))
    if slow or not is_real(base.support) or varies(flow, base):
        return draws.new_zeros((), dtype=torch.bool)
    with unmoved_generators(draws.device):
        noise = base.sample(torch.Size((SCORED,)))
    back, _ = pull(flow.transforms, draws[:SCORED], len(flow.event_shape))
    least = base.log_prob(noise).amin() - LARGE_GAP
    return ~(base.log_prob(back) >= least)  # NaN too


def varies(flow: FlowDistribution, base: Any) -> bool:
    """Whether each draw has a flow of its own."""
    contexts = [t.context.dim() - 1 for t in flow.transforms if isinstance(t, Conditioned)]
    return max([*contexts, len(base.batch_shape)]) >= len(flow.batch_shape)


def slow_to_score(transform: Any) -> bool:
    """Whether a transform is inverted one dimension after another."""
    if isinstance(transform, Inverse):
        return False
    module = getattr(transform, "bijection", transform)
    return is_foreign(transform) or isinstance(module, MaskedAutoregressive)


def middle(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Medians, and median distances from these.

    The latter are infinite where more than half of the draws are one number.
    """
    few = draws[:ENOUGH]
    centre = few.median(0).values
    spread = (few - centre).abs().median(0).values
    return centre, torch.where(spread > 0, spread, torch.inf)


def flow_events(flow: FlowDistribution, each: Tensor) -> Tensor:
    """Whether all numbers of an event have a property."""
    event_dim = len(flow.event_shape)
    return each.flatten(-event_dim).all(-1) if event_dim else each


def culprit(flow: FlowDistribution) -> str:
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
