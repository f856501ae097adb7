"""Compiled loops that make many steps in one call.

The loop runs in machine code and does not return to Python between steps.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from ppl_dgm.compile.graph.functionalise import functionalise, split_writes
from ppl_dgm.compile.inductor.backend import Backend, Compiled, compile_captured
from ppl_dgm.compile.torch_internals import make_fx, while_loop_op
from ppl_dgm.compile.tracing.capture import Captured, capture
from ppl_dgm.compile.tracing.pytrees import leaves_and_rest, tensor_leaves
from ppl_dgm.compile.tracing.turns import compiling_in_turn

__all__ = ["Loop", "compile_loop"]


@dataclass(frozen=True)
class Loop:
    r"""Compiled loop over a state with stacked inputs.

    It computes $(s_{t+1}, y_t) = f(s_t, x_t, c)$ for $t = 0, \ldots, n - 1$.

    Attributes:
        compiled: the machine code of the whole loop.
        length: the most steps one call makes.
    """

    compiled: Compiled
    length: int

    def __call__(
        self, state: Any, inputs: Any, fixed: Any = (), count: int | None = None
    ) -> tuple[Any, Any]:
        """Run `count` steps (all, by default).

        Args:
            state: the initial state, shaped like the example.
            inputs: `[length, ...]`, shaped like the example; only the first `count` rows are used.
            fixed: what all steps share, shaped like the example.
            count: number of steps, at most `length`.

        Returns:
            The final state, and the outputs `[length, ...]`, of which the first `count` rows are
                meaningful.
        """
        count = self.length if count is None else count
        if not 0 <= count <= self.length:
            raise ValueError(f"this loop makes 0 to {self.length} steps a call, got {count}")
        return self.compiled(state, inputs, fixed, _count_beside(inputs, count))


def compile_loop(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: Any,
    inputs: Any,
    fixed: Any = (),
    *,
    backend: Backend = "inductor",
) -> Loop:
    """Compile $n$ repetitions of a step as one call.

    It is like `jax.lax.scan`.

    Worth it where a step takes microseconds; a step of a millisecond is as fast called from Python.
    What `step` writes in place (parameters, buffers, optimiser state) is carried along and written
    back at the end.

    Args:
        step: `(state, x, fixed) -> (state, y)`, nested tensors; the new state has the shapes and
            dtypes of the old one, and what is recorded should be small.
        state: example of the state.
        inputs: example of the inputs, stacked: `[length, ...]`. Every step gets one row.
        fixed: example of what all steps share.
        backend: as in `compile_function`.

    Raises:
        CaptureError: the step cannot be captured, returns a state unlike its own, or the compiler
            fails.
        ValueError: the inputs are not stacked, `[length, ...]` all.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import compile_loop
        >>> step = lambda s, x, _: (s + x, s)
        >>> add = compile_loop(step, torch.zeros(()), torch.ones(4), backend="eager")
        >>> final, history = add(torch.tensor(1.0), torch.ones(4))
        >>> final, history
        (tensor(5.), tensor([1., 2., 3., 4.]))
    """
    with compiling_in_turn():
        return _compile_loop(step, state, inputs, fixed, backend)


def _compile_loop(step: Any, state: Any, inputs: Any, fixed: Any, backend: Backend) -> Loop:
    length = _length(tensor_leaves(inputs))
    captured = capture(step, (state, pytree.tree_map(lambda rows: rows[0], inputs), fixed))
    captured.check_carries(state, operator.itemgetter(0))
    looks = [tensor.detach() for tensor in (*captured.examples, *captured.lifted)]
    graph, written = split_writes(functionalise(captured.graph, looks))
    plan = _Plan(
        graph,
        len(tensor_leaves(state)),
        len(tensor_leaves(inputs)),
        len(captured.examples),
        written,
    )
    given, rest = leaves_and_rest((state, inputs, fixed, _count_beside(inputs, length)))
    flat = [tensor.detach() for tensor in (*given, *captured.lifted)]
    loop = make_fx(plan.run, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
    whole = Captured(
        loop, captured.lifted, tuple(flat[: len(given)]), captured.rebuild, rest, captured.settings
    )
    return Loop(compile_captured(whole, backend=backend, turns=len(given) - 1), length)


def _count_beside(inputs: Any, count: int) -> torch.Tensor:
    """A number of steps on the device of the inputs."""
    return torch.full((), count, dtype=torch.int64, device=tensor_leaves(inputs)[0].device)


def _length(rows: Sequence[torch.Tensor]) -> int:
    """Number of rows of stacked inputs."""
    lengths = {tensor.shape[0] if tensor.dim() else 0 for tensor in rows}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [list(tensor.shape) for tensor in rows]
        raise ValueError(
            f"inputs have shapes {shapes}; expected at least one, stacked, all with equally many "
            "rows"
        )
    return lengths.pop()


@dataclass(frozen=True)
class _Plan:
    """How the captured step's arguments map to the loop's.

    The step takes `states` leaves of the state, `rows` of one row of inputs, the fixed ones
    (`given` in all), and the lifted tensors, of which those at the positions `written` come back as
    further outputs.
    """

    graph: GraphModule
    states: int
    rows: int
    given: int
    written: tuple[int, ...]

    def run(self, *flat: torch.Tensor) -> list[torch.Tensor]:
        """Run the loop on flat tensors.

        These are states, stacked inputs, fixed tensors, the count and lifted tensors.
        """
        arguments, count = [*flat[: self.given], *flat[self.given + 1 :]], flat[self.given]
        start = [*arguments[: self.states], *(arguments[place] for place in self.written)]
        blank = self._blank_outputs(arguments[self.states].shape[0])
        first = torch.zeros((), dtype=torch.int64, device=count.device)
        shared = (*(arguments[place] for place in self._shared(len(arguments))), count)
        carried: Any = (first, *blank, *start)
        final = while_loop_op(_unfinished, self._body(len(blank), len(arguments)), carried, shared)
        outputs, ended = final[1 : 1 + len(blank)], final[1 + len(blank) :]
        for place, value in zip(self.written, ended[self.states :], strict=True):
            arguments[place].copy_(value)
        return [*ended[: self.states], *outputs]

    def _blank_outputs(self, length: int) -> list[torch.Tensor]:
        output: Any = self.graph.graph.output_node()
        results = [node.meta["val"] for node in output.args[0]]
        shown = self._shown(results)  # of the first trace: only their looks are of use
        return [
            torch.zeros(length, *value.shape, dtype=value.dtype, device=value.device)
            for value in shown
        ]

    def _shown(self, results: Sequence[Any]) -> Sequence[Any]:
        return results[self.states : len(results) - len(self.written)]

    def _shared(self, total: int) -> list[int]:
        """Return the positions of arguments that stay the same.

        Every tensor that is passed to a loop costs time at every step.
        """
        return [place for place in range(self.states, total) if place not in self.written]

    def _body(self, outputs: int, total: int) -> Callable[..., tuple[torch.Tensor, ...]]:
        places, stop = self._shared(total), outputs + self.states + len(self.written)

        def body(index: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
            stacks, now, rest = flat[:outputs], flat[outputs:stop], flat[stop:-1]
            row = [
                stack.index_select(0, index.reshape(1)).squeeze(0) for stack in rest[: self.rows]
            ]
            arguments = dict(zip(places, [*row, *rest[self.rows :]], strict=True))
            arguments.update(zip([*range(self.states), *self.written], now, strict=True))
            results = self.graph(*(arguments[place] for place in range(total)))
            new = [*results[: self.states], *results[len(results) - len(self.written) :]]
            recorded = map(_record(index), stacks, self._shown(results))
            return (
                index + 1,
                *recorded,
                *(value.clone() for value in new),
            )  # no state may be a part of another

        return body


def _unfinished(index: torch.Tensor, *flat: torch.Tensor) -> torch.Tensor:
    return index < flat[-1]


def _record(index: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def write(stack: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        row = torch.arange(stack.shape[0], device=stack.device) == index
        return torch.where(row.reshape(-1, *(1,) * value.dim()), value, stack)

    return write
