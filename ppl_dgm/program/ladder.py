"""Ladder: densities of data between one that can be drawn and a model's own."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Ladder(ABC):
    r"""What an unnormalised model knows of itself beyond its density: a path to it, and moves along that path.

    A model that is a `Ladder` is annealed and moved by its own transitions, in place of those that only see its log
    density: $f_\beta$ for $\beta$ in [0, 1] goes from a normalised density, which can be drawn, to the model's own,
    $f_1$. To add one, implement `draw`, `log_density` and `move`; `log_partition` where a sum is to be had.
    """

    @abstractmethod
    def draw(self, num_draws: int) -> Tensor:
        """Draw data from $f_0$: `[num_draws, *event]`."""

    @abstractmethod
    def log_density(self, x: Tensor, beta: Any) -> Tensor:
        r"""Compute $\log f_\beta$ of data `[n, *event]`, in nats: `[n]`; $f_0$ integrates to one."""

    @abstractmethod
    def move(self, x: Tensor, beta: Any = 1.0) -> Tensor:
        r"""Move data `[n, *event]` once, by a reversible transition that leaves $f_\beta$ invariant."""

    def log_partition(self) -> Tensor | None:
        r"""Compute $\log \int f_1$ without error, `[]` in nats; None where that would take too long."""
        return None


def ladder_of(model: Any) -> Ladder | None:
    """Return the ladder that a program's model is, or None."""
    own = getattr(model, "fn", model)
    return own if isinstance(own, Ladder) else None
