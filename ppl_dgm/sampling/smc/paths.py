"""Paths of densities and the temperatures along them.

A path leads from a density that can be drawn from to the joint density.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_dgm.compile import Switch
from ppl_dgm.program import Bound
from ppl_dgm.sampling.kernels import Kernel, Target
from ppl_dgm.sampling.memory import allocated_bytes, part_of
from ppl_dgm.sampling.unconstrained import Unconstrained, check_continuous

__all__ = [
    "Path",
    "Start",
    "check_start",
    "clipping_alarm",
    "divide",
    "linear_temperatures",
    "sigmoid_temperatures",
]

Start = Literal["prior", "guide"]
NUM_DRAWS, MAX_TIES = (
    256,
    0.05,
)  # prior draws that are looked at, and the share of them that may coincide
PROBE_DATA = 16  # data on which supports are read and memory is measured


@dataclass(frozen=True)
class Path:
    r"""Geometric path from prior or guide to the joint density.

    It is $f_\beta(y) = f_0(y)^{1-\beta}\, p(x, y)^{\beta}$.

    From the prior this is $p(y)\, p(x \mid y)^\beta$. Points are `[chains, *batch, dim]`,
    unconstrained, and densities in nats.

    Args:
        space: the program's latents as one vector.
        start: where the path begins.
        chains_at_once: bounds the memory of one evaluation.
        switch: runs what is done along the path, eagerly or compiled.
        origin: the path for another part of the data, with which this one shares compiled code.
        parts_left: how many parts of the data come after this one.
    """

    space: Unconstrained
    start: Start
    chains_at_once: int | None = None
    switch: Switch = field(default_factory=lambda: Switch(False))
    origin: "Path | None" = None
    parts_left: int = 0

    def rebind(self, bound: Bound) -> "Path":
        """The path for another part of the data."""
        return replace(self, space=self.space.rebind(bound), origin=self.origin or self)

    def run(
        self, fn: Callable[..., Any], *inputs: Any, step: int | None = None, last: int = 0
    ) -> Any:
        """Run `fn(self, *inputs)`, compiled or not.

        It is compiled once for all parts of the data that look alike.

        Where it is done `last` times for each part of the data, `step` tells how often it has been
        done.
        """
        bound = self.space.bound
        given = self.origin or self, fn, bound.args, dict(bound.kwargs), bound.num_data
        left = None if step is None else last - step + self.parts_left * last
        return self.switch(on_part, *given, *inputs, left=left)

    @property
    def target(self) -> Target:
        """The path as kernels take it."""
        return Target(self.density, self.chains_at_once)

    def density(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the log densities of the path at points.

        They are log f_0 and log f_1 - log f_0, each `[chains, *batch]`, and not finite where
        numbers overflow.
        """
        split = self.space.raw_split(point)
        if self.start == "prior":
            return split.prior, split.likelihood
        log_guide = self.space.log_guide(point)
        return log_guide, split.total - log_guide

    def draw(self, num_chains: int) -> Tensor:
        """Draw points from f_0: `[chains, *batch, dim]`.

        Raises:
            ValueError: if draws are not finite, as from an improper prior.
        """
        pieces = [self._draw(count) for count in piece_sizes(num_chains, self.chains_at_once)]
        point = torch.cat(pieces)
        if not bool(torch.isfinite(point).all()):
            raise ValueError(
                f"draws from the {self.start} are not finite in unconstrained coordinates, so that "
                "no path can begin there; give the program a proper prior that stays inside its "
                "support, or begin at a guide: start='guide'"
            )
        return point

    def _draw(self, num_chains: int) -> Tensor:
        if self.start == "guide":
            return self.space.sample_guide(num_chains)[0]
        return self.space.sample_prior(num_chains)


def on_part(
    origin: Path, fn: Callable[..., Any], args: Any, kwargs: Any, num_data: int | None, *inputs: Any
) -> Any:
    """Apply a function to the path of one data part.

    The data come as arguments, so that a captured graph has them.
    """
    part = replace(origin.space.bound, args=args, kwargs=kwargs, num_data=num_data)
    return fn(origin.rebind(part), *inputs)


def piece_sizes(total: int, at_once: int | None) -> list[int]:
    """Divide a number of chains into pieces."""
    at_once = at_once or total
    return [min(at_once, total - done) for done in range(0, total, at_once)]


def open_space(bound: Bound) -> Unconstrained:
    """Represent the program's latents as one vector.

    It is read from a few data.

    Raises:
        ValueError: for latents that are discrete, absent, or without a prior that can be drawn.
    """
    few = part_of(bound, 0, min(bound.num_data or 1, PROBE_DATA)) if is_divisible(bound) else bound
    try:
        return Unconstrained(few)
    except NotImplementedError as error:
        raise ValueError(
            f"the prior cannot be drawn from: {error}. Evidence needs a proper prior; replace the "
            "improper one by, e.g., a wide Normal or Cauchy"
        ) from error


def is_divisible(bound: Bound) -> bool:
    """Check whether data parts have evidences of their own."""
    return bound.structure.per_datum and bound.structure.divisible


def divide(
    bound: Bound, start: Start, num_chains: int, memory: int, kernel: Kernel, switch: Switch
) -> Iterator[tuple[int, Path]]:
    """Yield the path for each part of the data.

    A part has as many data as memory allows with all chains.

    Yields (first datum, path).
    """
    space = open_space(bound)
    few = space.bound

    def evaluate() -> Any:
        return Path(space, start).target.evaluate(space.origin(1), kernel.uses_gradient)

    num_data = (bound.num_data or 1) if is_divisible(bound) else 1
    probed = (few.num_data or 1) if is_divisible(bound) else 1
    rows = max(1, int(memory / (allocated_bytes(evaluate) / probed + 1)))
    parts = math.ceil(num_data / max(1, rows // num_chains))
    size = math.ceil(num_data / parts)
    origin = Path(space, start, min(rows, num_chains), switch)
    for first in range(0, num_data, size):
        path = origin.rebind(part_of(bound, first, first + size) if is_divisible(bound) else bound)
        yield first, replace(path, parts_left=(num_data - first - 1) // size)


def linear_temperatures(num_temperatures: int) -> Tensor:
    r"""Inverse temperatures $\beta_t = t / T$, `[T + 1]`."""
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


def sigmoid_temperatures(num_temperatures: int, sharpness: float = 4.0) -> Tensor:
    r"""Inverse temperatures denser at both ends, `[T + 1]`.

    $\tilde\beta_t = \sigma(\delta (2t/T - 1))$, shifted and scaled to begin at 0 and end at 1.
    Grosse, Ghahramani and Adams (2015), "Sandwiching the marginal likelihood using bidirectional
    Monte Carlo", section 6.

    Example:
        >>> sigmoid_temperatures(4)
        tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    raw = (sharpness * (2 * linear_temperatures(num_temperatures) - 1)).sigmoid()
    return (raw - raw[0]) / (raw[-1] - raw[0])


def clipping_alarm(bound: Bound, start: Start) -> tuple[str, ...]:
    """Warn where prior draws coincide at the smallest float.

    They should all differ. Those of Gamma(1e-4, 1e-4) coincide, for instance.
    """
    if start == "guide":
        return ()
    draws = open_space(bound).sample_prior(NUM_DRAWS).flatten(1)
    ordered = draws.sort(0).values
    share = (ordered[1:] == ordered[:-1]).double().mean(0).max().item()
    if share < MAX_TIES:
        return ()
    message = (
        f"{100 * share:.2g} % of the prior draws of a latent coincide: floating-point numbers do "
        "not reach into its prior's tails, so that paths from the prior are biased; begin at a "
        "guide (start='guide')"
    )
    return (message,)


def check_start(bound: Bound, start: str) -> None:
    """Refuse programs and starts that make no path."""
    if start not in ("prior", "guide"):
        raise ValueError(f"start is {start!r}; expected 'prior' or 'guide'")
    check_continuous(bound)
