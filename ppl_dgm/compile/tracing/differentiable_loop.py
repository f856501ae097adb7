"""Loop with a gradient, as two nodes of a graph.

One loop goes through the turns, the other goes back through them. Outside of a capture, Python runs
the turns as they stand.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppl_dgm.compile.torch_internals import is_functorch_wrapped_tensor
from ppl_dgm.compile.tracing.fori_loop import repeat, writes_loops
from ppl_dgm.compile.tracing.pytrees import tensor_leaves, with_tensors

__all__ = ["iterate", "row_at"]

Turn = Callable[[Any, Any, Any], Any]
Flat = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def iterate(count: int, body: Turn, carry: Any, fixed: Any = ()) -> Any:
    r"""Iterate a body `count` times, with a gradient.

    It returns $c$ after $c \leftarrow f(t, c, \mathrm{fixed})$ for t = 0, ..., `count` - 1.

    Gradients reach `carry` and `fixed`. In a captured function the body is compiled once for all
    turns, and once more for the gradient: that runs each turn again, from what was carried to it,
    which is kept. It has no gradient of its own there.

    Args:
        count: number of turns.
        body: `(turn, carry, fixed) -> carry`, with the same nesting, shapes and dtypes. The turn is
            a Python number, or an integer `[]` in a captured function. All that has a gradient is
            in `carry` and `fixed`.
        carry: where it starts, nested tensors of floating point.
        fixed: what all turns share, nested tensors of floating point.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import iterate
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> power = iterate(3, lambda turn, carry, x: carry * x, torch.tensor(1.0), x)
        >>> power.detach(), torch.autograd.grad(power, x)
        (tensor(8.), (tensor(12.),))
    """
    start, shared = tensor_leaves(carry), tensor_leaves(fixed)
    if count == 1 or not writes_loops() or any(map(is_functorch_wrapped_tensor, start + shared)):
        for turn in range(count):
            carry = body(turn, carry, fixed)
        return carry

    def flat(turn: Any, state: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        return tensor_leaves(body(turn, with_tensors(carry, state), with_tensors(fixed, given)))

    # Copies are of the trace; autograd's functions do not see what stands in for parameters.
    copies = [part.clone(memory_format=torch.contiguous_format) for part in (*start, *shared)]
    ended: Any = Turns.apply(count, flat, len(start), *copies)
    return with_tensors(carry, ended)


class Turns(torch.autograd.Function):
    """All turns of a loop, one operation for autograd."""

    @staticmethod
    def forward(ctx: Any, count: int, body: Flat, size: int, *tensors: Tensor) -> Any:
        """Go through the turns.

        What is carried to each is kept where the gradient needs it.
        """
        start, fixed = list(tensors[:size]), list(tensors[size:])
        stacked = start if any(ctx.needs_input_grad) else []
        kept = [part.new_zeros(count, *part.shape) for part in stacked]

        def turn(carry: Any, fixed: list[Tensor]) -> Any:
            place, state, kept = carry
            written = [_with_row(*pair, place) for pair in zip(kept, state, strict=False)]
            return place + 1, list(body(place, state, fixed)), written

        _, ended, kept = repeat(_whole(count, start), turn, (_whole(0, start), start, kept), fixed)
        ctx.save_for_backward(*kept, *fixed)
        ctx.count, ctx.body, ctx.size = count, body, size
        return tuple(ended)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Go back through the turns, each run again."""
        size, body = ctx.size, ctx.body
        kept, fixed = list(ctx.saved_tensors[:size]), list(ctx.saved_tensors[size:])

        def turn(carry: Any, given: Any) -> Any:
            place, slopes, sums = carry
            kept, fixed = given
            state = [row_at(stack, place) for stack in kept]
            leaves = [part.detach().requires_grad_() for part in (*state, *fixed)]
            with torch.enable_grad():
                ended = body(place, leaves[:size], leaves[size:])
            found = torch.autograd.grad(ended, leaves, slopes, materialize_grads=True)
            sums = [total + part for total, part in zip(sums, found[size:], strict=True)]
            return place - 1, list(found[:size]), sums

        sums = [torch.zeros_like(part) for part in fixed]
        start = _whole(ctx.count - 1, kept), [part.contiguous() for part in slopes], sums
        _, found, sums = repeat(_whole(ctx.count, kept), turn, start, (kept, fixed))
        return None, None, None, *found, *sums


def _whole(number: int, beside: Sequence[Tensor]) -> Tensor:
    """A whole number `[]` on a device."""
    return torch.full((), number, dtype=torch.int64, device=beside[0].device)


def _with_row(stack: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """A stack with another row at a place."""
    chosen = torch.arange(len(stack), device=stack.device) == place
    return torch.where(chosen.reshape(-1, *(1,) * row.dim()), row, stack)


def row_at(stack: Tensor, place: Any) -> Tensor:
    """Return the row of a stack at a place.

    The place is a Python number or an integer `[]`, which is not read on the host.
    """
    if isinstance(place, int):
        return stack[place]
    return stack.index_select(0, place.reshape(1)).squeeze(0)
