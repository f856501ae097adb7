"""Loop that is one node of a captured graph.

Outside of a capture, Python runs the loop as it stands.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from ppl_dgm.compile.torch_internals import (
    function_modes,
    pop_mode,
    push_mode,
    while_loop_op,
    without_modes,
)

__all__ = ["Body", "emit_loop", "outside_of_traces", "repeat", "running_loops", "writes_loops"]

Body = Callable[[Any, Any], Any]
Runner = Callable[[torch.Tensor, Body, Any, Any], Any]


def repeat(count: torch.Tensor | int, body: Body, carry: Any, fixed: Any = ()) -> Any:
    r"""Apply $c \leftarrow f(c, \mathrm{fixed})$ `count` times and return $c$.

    In a captured function the whole loop is one node of the graph, whatever `count` turns out to
    be, and `count` is not read on the host.

    Args:
        count: how often, an integer `[]`; a Python number of turns is written out in the graph one
            after the other.
        body: `(carry, fixed) -> carry`, with the same nesting, shapes and dtypes; it may read other
            tensors, but writes to none in place.
        carry: where it starts, nested tensors.
        fixed: what all turns share, nested tensors.

    Raises:
        ValueError: for a count that is no integer.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import repeat
        >>> add = lambda carry, step: carry + step
        >>> repeat(torch.tensor(3), add, torch.tensor(1.0), torch.tensor(2.0))
        tensor(7.)
    """
    if isinstance(count, torch.Tensor) and (count.dtype.is_floating_point or count.dim()):
        raise ValueError(
            f"count is of shape {list(count.shape)} and {count.dtype}; expected an integer []"
        )
    return (
        in_python(count, body, carry, fixed)
        if isinstance(count, int)
        else _RUNNER.get()(count, body, carry, fixed)
    )


def in_python(count: torch.Tensor | int, body: Body, carry: Any, fixed: Any) -> Any:
    """Run the loop as it stands."""
    for _ in range(int(count)):
        carry = body(carry, fixed)
    return carry


_RUNNER: ContextVar[Runner] = ContextVar("runner", default=in_python)


@contextmanager
def running_loops(runner: Runner) -> Iterator[None]:
    """Let `repeat` be run by something else."""
    token = _RUNNER.set(runner)
    try:
        yield
    finally:
        _RUNNER.reset(token)


def writes_loops() -> bool:
    """Tell whether loops are captured, and not run by Python."""
    return _RUNNER.get() is not in_python


@contextmanager
def outside_of_traces() -> Iterator[None]:
    """Suspend the modes of the current trace.

    Another trace can be made meanwhile.
    """
    modes = []
    with without_modes():
        while function_modes():
            modes.append(pop_mode())
        try:
            yield
        finally:
            for mode in reversed(modes):
                push_mode(mode)


def emit_loop(
    graph: Callable[..., Any],
    carry: Sequence[torch.Tensor],
    fixed: Sequence[torch.Tensor],
    count: torch.Tensor,
) -> list[torch.Tensor]:
    """Write a loop into the graph being traced.

    Its body is flat and functional: `(*carry, *fixed) -> carry`.
    """

    def unfinished(index: torch.Tensor, *flat: torch.Tensor) -> torch.Tensor:
        return index < flat[-1]

    def turn(index: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Copies: a view handed from turn to turn crashes the compiler's code.
        return (index + 1, *(value.clone() for value in graph(*flat[:-1])))

    first = torch.zeros((), dtype=count.dtype, device=count.device)
    loop: Any = while_loop_op
    given = _apart([*carry, *fixed, count])
    return list(
        loop(unfinished, turn, (first, *given[: len(carry)]), tuple(given[len(carry) :]))[1:]
    )


def _apart(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors that share memory with an earlier one.

    Loops refuse tensors that overlap.
    """
    places = [tensor.untyped_storage()._cdata for tensor in tensors]
    return [
        tensor.clone() if places[i] in places[:i] else tensor for i, tensor in enumerate(tensors)
    ]
