"""One dictionary of example programs by name, each with its data and evidence.

To add one: write a function that returns an `Example` and mark it with `@example(name)`, after the
example, tutorial or gallery item whose program it follows. Modules of a theme hold the functions.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.poutine import block
from torch import Tensor

__all__ = [
    "EXAMPLES",
    "Example",
    "enumerating",
    "example",
    "grid_log_integral",
    "log_sum_over",
    "nothing",
    "over",
    "point",
    "randn",
    "uniform",
]


@dataclass(frozen=True)
class Example:
    """A model and guide, their arguments, and the loss of the original.

    `truth()` is the log evidence of all data in nats, found without the library; `options` are
    settings of `Program`; `given` says that `fit` gets the loss, not its own ELBO.
    """

    model: Callable
    guide: Callable | None = None
    args: tuple[Any, ...] = ()
    loss: Callable[[], ELBO] = Trace_ELBO
    truth: Callable[[], float] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    given: bool = False


EXAMPLES: dict[str, Callable[[], Example]] = {}


def example(name: str) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Enter a constructor under the name of the original."""

    def enter(make: Callable[[], Example]) -> Callable[[], Example]:
        if name in EXAMPLES:
            raise ValueError(f"two examples are named {name!r}")
        EXAMPLES[name] = make
        return make

    return enter


def nothing(*_: Any, **__: Any) -> None:
    """The guide of a program whose latents are all summed out."""


def enumerating(nesting: int = 1) -> Callable[[], ELBO]:
    """The loss that sums out discrete latents."""
    return lambda: TraceEnum_ELBO(max_plate_nesting=nesting)


def over(model: Callable, *names: str) -> AutoNormal:
    """A normal guide of the named latents alone."""
    return AutoNormal(block(model, expose=list(names)))


def point(model: Callable, *names: str) -> AutoDelta:
    """A point mass for each of the named latents."""
    return AutoDelta(block(model, expose=list(names)))


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal data, the same on each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Uniform data, the same on each call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def grid_log_integral(
    log_density: Callable[..., Tensor], *ranges: tuple[float, float, int]
) -> float:
    """Log of the integral of a density by the midpoint rule, in double.

    The function takes coordinates `[points]`, one argument for each range (low, high, points).
    """
    axes, volume = [], 1.0
    for low, high, count in ranges:
        width = (high - low) / count
        axes.append(low + width * (torch.arange(count, dtype=torch.float64) + 0.5))
        volume *= width
    points = [axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")]
    return (torch.logsumexp(log_density(*points), 0) + torch.tensor(volume).log()).item()


def log_sum_over(log_density: Callable[..., Tensor], *sizes: int) -> float:
    """Log of the sum of a density over all states of discrete variables."""
    states: Sequence[tuple[int, ...]] = list(itertools.product(*map(range, sizes)))
    return torch.stack([log_density(*state) for state in states]).logsumexp(0).item()
