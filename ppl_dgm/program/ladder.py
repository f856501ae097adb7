"""Paths from a simple density to an unnormalised model's own.

The first density of the path can be drawn.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["MAX_SUMMED", "Ladder", "States", "ladder_of"]

MAX_SUMMED = 20  # binary units whose 2^n states are summed
STATES_AT_ONCE = 2**14


@dataclass(frozen=True)
class States:
    """All states of some binary units, with their weights.

    Args:
        num_units: n, the number of units.
        like: a tensor whose dtype and device the states have.
        log_weight: of states `[m, n]`, in nats: `[m]`.
        data: draws data `[m, *event]` given states `[m, n]`.
    """

    num_units: int
    like: Tensor
    log_weight: Callable[[Tensor], Tensor]
    data: Callable[[Tensor], Tensor]

    def log_sum(self) -> Tensor:
        """Sum the weights of all states, in double precision: `[]`."""
        return self._log_weights().logsumexp(0)

    def draw(self, num_draws: int) -> Tensor:
        """Draw data exactly, by states drawn from all: `[num_draws, *event]`."""
        shares = self._log_weights().softmax(0)
        return self.data(self._bits(shares.multinomial(num_draws, replacement=True)))

    def _log_weights(self) -> Tensor:
        every = torch.arange(2**self.num_units, device=self.like.device)
        parts = [self.log_weight(self._bits(some)) for some in every.split(STATES_AT_ONCE)]
        return torch.cat(parts).double()

    def _bits(self, numbers: Tensor) -> Tensor:
        places = torch.arange(self.num_units, device=numbers.device)
        return (numbers.unsqueeze(-1) >> places & 1).to(self.like.dtype)


class Ladder(ABC):
    r"""Path to an unnormalised model, with moves along it.

    It is what the model knows of itself beyond its density.

    A model that is a `Ladder` is annealed and moved by its own transitions, in place of those that
    only see its log density: $f_\beta$ for $\beta$ in [0, 1] goes from a normalised density, which
    can be drawn, to the model's own, $f_1$. To add one, implement `draw`, `log_density` and `move`;
    `states` where a sum is to be had, and `blockwise` where it holds.

    Attributes:
        blockwise: whether a move ends by drawing all entries of a datum independently of one
            another, so that those of them that are held can be put back after it.
    """

    blockwise: ClassVar[bool] = False

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

    def states(self) -> States | None:
        """Return the states that f_1 is a sum over.

        None where there are too many for a sum.
        """
        return None

    def log_partition(self) -> Tensor | None:
        r"""Compute the exact log partition function, in nats.

        It is $\log \int f_1$, `[]`, or None where that would take too long.
        """
        states = self.states()
        return None if states is None else states.log_sum()


def ladder_of(model: Any) -> Ladder | None:
    """Return the ladder that a program's model is, or None."""
    own = getattr(model, "fn", model)
    return own if isinstance(own, Ladder) else None
