"""Numerical inverses of increasing functions, differentiable."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["bracket", "solve_increasing"]

Function = Callable[[Tensor], tuple[Tensor, Tensor]]  # value and derivative, both elementwise


def solve_increasing(function: Function, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Solve f(x) = y elementwise for an increasing f.

    The brackets must hold the solution.

    Bisections in turn with Newton steps, these replaced by bisections where they leave the bracket;
    the bisections alone narrow it to the dtype's relative precision. Then one more Newton step,
    $x = x^* - (f(x^*) - y) / f'(x^*)$, through which gradients flow: those of the implicit function
    theorem, exact to first order for y and for everything that f depends on.

    Args:
        function: maps x to f(x) and f'(x), both of x's shape.
        y: values `[...]`.
        low: `[...]` with f(low) <= y.
        high: `[...]` with f(high) >= y.

    Example:
        >>> cube = lambda x: (x**3 + x, 3 * x**2 + 1)
        >>> solve_increasing(cube, torch.tensor([10.0]), torch.tensor([-5.0]), torch.tensor([5.0]))
        tensor([2.])
    """
    with torch.no_grad():
        x = _bracketed(function, y.detach(), low.detach(), high.detach())
    value, slope = function(x)
    step = (value - y) / slope.detach()
    return x - torch.where(step.isfinite(), step, 0.0)


def _bracketed(function: Function, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    x = (low + high) / 2
    for turn in range(_num_turns(y.dtype)):
        value, slope = function(x)
        below = value < y
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        newton, middle = x - (value - y) / slope, (low + high) / 2
        inside = (newton > low) & (newton < high)
        x = torch.where(inside, newton, middle) if turn % 2 else middle
    return x


def _num_turns(dtype: torch.dtype) -> int:
    """Choose the number of iterations for a dtype.

    It is enough for Newton's method to finish what as many bisections have begun.
    """
    return 64 if dtype == torch.float64 else 32


def bracket(
    function: Function, y: Tensor, centre: Tensor, turns: int = 60
) -> tuple[Tensor, Tensor]:
    """Find brackets of the solutions of f(x) = y.

    They start with one around a centre and are doubled until they hold the solutions.

    Args:
        function: maps x to f(x) and f'(x).
        y: values `[...]`.
        centre: `[...]`, where to start.
        turns: doublings at most.

    Example:
        >>> low, high = bracket(lambda x: (x / 1000, 0 * x), torch.tensor(5.0), torch.tensor(0.0))
        >>> bool(low <= 5000 <= high)
        True
    """
    low, high = centre - 1.0, centre + 1.0
    for _ in range(turns):
        width = high - low
        low = torch.where(function(low)[0] > y, low - width, low)
        high = torch.where(function(high)[0] < y, high + width, high)
    return low, high
