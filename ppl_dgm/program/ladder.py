"""Paths from a simple density to an unnormalised model's own.

The first density of the path can be drawn.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAX_SUMMED", "Ladder", "ladder_of", "sum_states"]

MAX_SUMMED = 20  # binary units whose 2^n states are summed
STATES_AT_ONCE = 2**14


class Ladder(ABC):
    r"""Path to an unnormalised model, with moves along it.

    It is what the model knows of itself beyond its density.

    A model that is a `Ladder` is annealed and moved by its own transitions, in place of those that
    only see its log density: $f_\beta$ for $\beta$ in [0, 1] goes from a normalised density, which
    can be drawn, to the model's own, $f_1$. To add one, implement `draw`, `log_density` and `move`;
    `log_partition` where a sum is to be had.
    """

    @abstractmethod
    def draw(self, num_draws: int) -> Tensor:
        """Draw data from $f_0$: `[num_draws, *event]`."""

    @abstractmethod
    def log_density(self, x: Tensor, beta: Any) -> Tensor:
        r"""Compute $\log f_\beta$ of data `[n, *event]`, in nats.

        The result is `[n]`. $f_0$ integrates to one.
        """

    @abstractmethod
    def move(self, x: Tensor, beta: Any = 1.0) -> Tensor:
        r"""Move data `[n, *event]` once by a reversible transition.

        The transition leaves $f_\beta$ invariant.
        """

    def log_partition(self) -> Tensor | None:
        r"""Compute the exact log partition function, in nats.

        It is $\log \int f_1$, `[]`, or None where that would take too long.
        """
        return None


def ladder_of(model: Any) -> Ladder | None:
    """Return the ladder that a program's model is, or None."""
    own = getattr(model, "fn", model)
    return own if isinstance(own, Ladder) else None


def sum_states(num_units: int, like: Tensor, log_weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum weights over all states of binary units.

    The result is the log of the sum in double precision, `[]`.
    """
    parts = []
    for states in torch.arange(2**num_units, device=like.device).split(STATES_AT_ONCE):
        bits = states.unsqueeze(-1) >> torch.arange(num_units, device=like.device)
        parts.append(log_weight((bits & 1).to(like.dtype)).double().logsumexp(0))
    return torch.stack(parts).logsumexp(0)
