"""Count of the densities that estimators evaluate."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ppl_dgm.watching import WATCH

__all__ = ["GRADIENT", "Effort", "OverBudgetError", "limited_effort", "spend"]

GRADIENT = 3.0  # densities that a density with its gradient costs


class OverBudgetError(RuntimeError):
    """Error of an estimator that evaluates too many densities."""


@dataclass
class Effort:
    """Densities that were evaluated, and how many may be."""

    limit: float = math.inf
    spent: float = 0.0


CURRENT: ContextVar[Effort | None] = ContextVar("effort", default=None)


@contextmanager
def limited_effort(limit: float) -> Iterator[Effort]:
    """Count the densities that are evaluated inside.

    Args:
        limit: densities, of one point and one datum each, above which `spend` raises.

    Example:
        >>> with limited_effort(100) as effort:
        ...     spend(20, GRADIENT)
        >>> effort.spent
        60.0
    """
    effort, outer = Effort(limit), CURRENT.get()
    token = CURRENT.set(effort)
    try:
        yield effort
    finally:
        CURRENT.reset(token)
        if outer is not None:
            outer.spent += effort.spent


def spend(points: int, each: float | Callable[[], float] = 1.0) -> None:
    """Count densities at points before they are evaluated.

    What each point costs may be a function: a cost that is read from a device is read where
    somebody counts alone.

    Raises:
        OverBudgetError: if they are more than the effort's limit.
    """
    effort, watch = CURRENT.get(), WATCH.get()
    if effort is None and (watch is None or not watch.shown):
        return
    count = points * (each() if callable(each) else each)
    if watch is not None:
        watch.add(count)
    if effort is None:
        return
    effort.spent += count
    if effort.spent > effort.limit:
        raise OverBudgetError(f"stopped after its budget of {effort.limit:.3g} densities")
