"""Capture of tensor functions under Pyro's handlers as static graphs."""

import pickle
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from ppl_dgm.compile.errors import NUMBER_CURE, CaptureError, user_line
from ppl_dgm.compile.graph.functionalise import (
    fold_literals,
    functionalise,
    lift_constants,
    split_writes,
)
from ppl_dgm.compile.graph.nodes import finish
from ppl_dgm.compile.torch_internals import (
    FakeTensor,
    FakeTensorMode,
    check_capture,
    detect_fake_mode,
    make_fx,
)
from ppl_dgm.compile.tracing.closures import Discovery, Lifting, Replacement, refuse_selections
from ppl_dgm.compile.tracing.fori_loop import Body, emit_loop, outside_of_traces, running_loops
from ppl_dgm.compile.tracing.known_values import is_constant
from ppl_dgm.compile.tracing.module_state import Settings, watched_modules
from ppl_dgm.compile.tracing.pyro_patches import SiteTracker, traceable_pyro
from ppl_dgm.compile.tracing.pytrees import (
    Rest,
    dense,
    fitted,
    leaves_and_rest,
    tensor_leaves,
    with_tensors,
)
from ppl_dgm.compile.tracing.turns import compiling_in_turn

__all__ = ["Captured", "capture", "is_tracing"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Captured:
    """Captured function with its graph and lifted tensors.

    It reads the lifted tensors by reference.

    Attributes:
        graph: maps the flat input tensors followed by `lifted` to the flat output tensors; no Pyro
            handler is in it.
        lifted: parameters, buffers and closure tensors the function touched, each once; in-place
            writes reach them. They may change their values, not their types, shapes or devices.
        examples: the flat input tensors it was captured with; shapes, dtypes and devices are
            theirs.
        rebuild: nests flat output tensors as the function does.
        rest: what else told the example arguments from others, baked in: lengths, names, leaves
            that are no tensors.
        settings: what the modules that ran held: flags (`training`), numbers, which tensors are
            their parameters.
    """

    graph: GraphModule
    lifted: tuple[torch.Tensor, ...]
    examples: tuple[torch.Tensor, ...]
    rebuild: Callable[[Sequence[torch.Tensor]], Any]
    rest: Rest
    settings: Settings

    def is_current(self) -> bool:
        """Return whether all modules have the settings of the capture.

        These are their mode, numbers, parameters and buffers.
        """
        return self.settings.changed() is None

    def fitted(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Return the flat tensors of new inputs.

        They are laid out in memory like the examples.

        Raises:
            ValueError: the inputs are unlike the examples, or a module is set differently now.
        """
        if (change := self.settings.changed()) is not None:
            raise ValueError(
                f"{change}, which is baked in. Capture again, or keep in a buffer what changes."
            )
        leaves, rest = leaves_and_rest(inputs)
        if rest != self.rest:
            raise ValueError(
                f"expected arguments nested like the examples, {self.rest}, got {rest}; capture "
                "again for others"
            )
        return fitted(leaves, self.examples)

    def check_carries(self, carry: Any, part: Callable[[Any], Any]) -> None:
        """Check that outputs of a loop body match its inputs.

        CaptureError is raised unless the given part of the outputs is nested like `carry`, with the
        same shapes and types.
        """
        output: Any = self.graph.graph.output_node()
        after = part(self.rebuild([node.meta["val"] for node in output.args[0]]))
        (old, nesting), (new, new_nesting) = leaves_and_rest(carry), leaves_and_rest(after)
        seen, given = ([(list(leaf.shape), leaf.dtype) for leaf in leaves] for leaves in (new, old))
        if nesting != new_nesting or seen != given:
            raise CaptureError(
                f"a turn of a loop must return what it was given, {given} nested as {nesting}, but "
                f"returned {seen} nested as {new_nesting}. Keep nesting, shapes and types from "
                "turn to turn."
            )

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph without the compiler on new inputs.

        Lifted tensors have their present values.
        """
        with torch.no_grad():
            outputs = self.graph(*self.fitted(inputs), *self.lifted)
        return self.rebuild(outputs)


def capture(fn: Callable[..., Any], inputs: Sequence[Any]) -> Captured:
    r"""Trace `fn(*inputs)` to a static graph that holds no Python.

    The function may run Pyro programs under handlers and call `torch.autograd.grad` inside. It is
    run twice on tensors without data: first to find every tensor it reads besides its inputs
    (parameters, buffers, closures; aliases count once), then to record the graph with those tensors
    as further inputs. So the graph follows their present values, and what `fn` does to them in
    place, `\theta \leftarrow \theta - \epsilon \nabla f`, happens at every call. All else that
    Python knows is baked in: a number in a closure is what it was. Numbers, modes and tensors of
    modules are compared at every call, and numbers that differ between the two runs (drawn by
    numpy, counted by Python) are refused, as are tensors handed from run to run outside of buffers;
    modules get back the tensors they kept. Inputs declared constant (`constant_data`) may be read:
    lengths that are looped over, masks that select, packed sequences; what is read is baked in. So
    may buffers of integers and flags that the function does not write to, whose values are then
    compared at every call.

    Args:
        fn: function of nested tuples, lists and dicts of tensors, with the same structure for all
            values. Leaves that are no tensors are held fixed.
        inputs: example arguments; their shapes, dtypes and devices are those of the graph.

    Returns:
        The graph with the tensors it reads; random numbers are drawn anew at every call, from
            torch's own generator.

    Raises:
        CaptureError: the function reads a value on the host, has data-dependent shapes or control
            flow, uses other numbers in its second run, creates or replaces parameters or buffers,
            or uses a sampler that does.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import capture
        >>> weight = torch.tensor([1.0, 2.0])
        >>> captured = capture(lambda x: (weight * x).sum(), (torch.ones(2),))
        >>> weight.mul_(2.0)
        tensor([2., 4.])
        >>> captured(torch.ones(2))
        tensor(6.)
    """
    check_capture()
    inputs = tuple(inputs)
    leaves, rest = leaves_and_rest(inputs)
    tensors = [dense(leaf) for leaf in leaves]
    constant = [is_constant(leaf) for leaf in leaves]

    def call(values: Sequence[torch.Tensor]) -> Any:
        return fn(*with_tensors(inputs, values))

    with compiling_in_turn(), watched_modules() as watch, _one_error(), _nothing_drawn():
        with traceable_pyro() as tracker:
            discovery = _discover(call, tensors, constant, tracker)
        watch.end_first_run()
        with traceable_pyro() as tracker:
            graph, rebuild = _trace(call, tensors, constant, discovery, tracker, watch.name_of)
    _refuse_host_reads(graph)
    fold_literals(graph)
    lifted = [*discovery.found.values(), *lift_constants(graph)]
    return _without_unused(
        Captured(
            graph,
            tuple(lifted),
            tuple(tensors),
            rebuild,
            rest,
            watch.settings(lifted, discovery.known.read),
        )
    )


def is_tracing() -> bool:
    """Return whether a function is being captured.

    Tensors have no values then.
    """
    return not isinstance(detect_fake_mode, type) and detect_fake_mode() is not None


def _discover(
    call: Callable[..., Any],
    tensors: list[torch.Tensor],
    constant: list[bool],
    tracker: SiteTracker,
) -> Discovery:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    discovery = Discovery(mode, tracker.site)
    with mode:
        values = [_leaf(mode.from_tensor(tensor.detach()), tensor) for tensor in tensors]
        _tell(discovery, values, tensors, constant)
        with discovery, running_loops(discovery.one_turn):
            call(values)
    return discovery


def _tell(
    mode: Lifting,
    values: list[torch.Tensor],
    tensors: list[torch.Tensor],
    constant: list[bool],
) -> None:
    """Tell a run the values of constant inputs."""
    for value, tensor, known in zip(values, tensors, constant, strict=True):
        if known:
            mode.known.know(value, tensor, given=True)


def _write_loop(count: torch.Tensor, body: Body, carry: Any, fixed: Any) -> Any:
    """Write a loop into the trace.

    Its body is captured by itself. What the body reads of the trace is lifted like all else.
    """
    with outside_of_traces():
        examples = [_like(leaf) for leaf in tensor_leaves((carry, fixed))]
        captured = capture(body, with_tensors((carry, fixed), examples))
        captured.check_carries(carry, lambda output: output)
        flat = [*examples, *map(_like, captured.lifted)]
        graph, written = split_writes(functionalise(captured.graph, flat))
    if written:
        raise CaptureError(
            "the body of a loop writes to a tensor in place. Hand the tensor from turn to turn "
            "instead."
        )
    final = emit_loop(graph, tensor_leaves(carry), [*tensor_leaves(fixed), *captured.lifted], count)
    return with_tensors(carry, final)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Create an empty tensor with the layout of another.

    The other tensor may belong to a trace.
    """
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


def _trace(
    call: Callable[..., Any],
    tensors: list[torch.Tensor],
    constant: list[bool],
    discovery: Discovery,
    tracker: SiteTracker,
    holder: Callable[[torch.Tensor], str | None],
) -> tuple[GraphModule, Callable[[Sequence[torch.Tensor]], Any]]:
    lifted = list(discovery.found.values())
    found: list[Callable[[Iterator[torch.Tensor]], Any]] = []

    def flat(*values: torch.Tensor) -> list[torch.Tensor]:
        leaves = [
            _leaf(value, tensor) for value, tensor in zip(values, [*tensors, *lifted], strict=True)
        ]
        given = leaves[: len(tensors)]
        replacement = Replacement(discovery, leaves[len(tensors) :], tracker.site, holder)
        _tell(replacement, given, tensors, constant)
        with replacement, running_loops(_write_loop):
            result = call(given)
        outputs: list[torch.Tensor] = []
        found.append(_nesting(result, outputs))
        refuse_selections(outputs)
        return [replacement.stand_in(output).detach() for output in outputs]

    traced = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)
    graph = traced(*(_concrete(tensor) for tensor in (*tensors, *lifted)))
    return graph, lambda outputs: found[-1](iter(outputs))


def _nesting(output: Any, leaves: list[torch.Tensor]) -> Callable[[Iterator[torch.Tensor]], Any]:
    """Collect the tensors of a nested output and its structure.

    The structure is a function that nests other tensors alike. None stays where it is.
    """
    if isinstance(output, torch.Tensor):
        leaves.append(output)
        return next
    if output is None:
        return lambda coming: None
    if type(output) is dict:
        named = {key: _nesting(value, leaves) for key, value in output.items()}
        return lambda coming: {key: part(coming) for key, part in named.items()}
    if isinstance(output, tuple | list):
        parts = [_nesting(value, leaves) for value in output]
        make = getattr(output, "_make", type(output))
        return lambda coming: make([part(coming) for part in parts])
    raise CaptureError(
        f"a captured function returns tensors only, but returned {type(output).__name__}"
    )


def _concrete(tensor: torch.Tensor) -> torch.Tensor:
    return _like(tensor) if isinstance(tensor, FakeTensor) else tensor.detach()


def _leaf(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.detach().requires_grad_() if like.requires_grad else value


def _refuse_host_reads(graph: GraphModule) -> None:
    """Refuse graphs in which library code reads tensor values.

    Inside library code the function mode is off, so that reads show up as nodes.
    """
    for node in graph.graph.nodes:
        if node.target is aten._local_scalar_dense.default:
            raise CaptureError(
                "library code called by the program reads a tensor's value on the host"
                f" ({node.meta.get('stack_trace') or 'line unknown'}). Run with compile=False."
            )


def _without_unused(captured: Captured) -> Captured:
    captured.graph.graph.eliminate_dead_code()
    placeholders = [node for node in captured.graph.graph.nodes if node.op == "placeholder"]
    kept = []
    for tensor, node in zip(captured.lifted, placeholders[len(captured.examples) :], strict=True):
        if node.users:
            kept.append(tensor)
        else:
            captured.graph.graph.erase_node(node)
    finish(captured.graph)
    return replace(captured, lifted=tuple(kept))


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Refuse draws from Python's and NumPy's random generators.

    They would happen once, at capture. The generators are set back.
    """
    numpys = np.random.mtrand._rand  # type: ignore[attr-defined]
    before = random.getstate(), numpys.get_state()
    try:
        yield
        after = random.getstate(), numpys.get_state()
    finally:
        random.setstate(before[0])
        numpys.set_state(before[1])
    for name, old, new in zip(("random", "numpy.random"), before, after, strict=True):
        if pickle.dumps(old) != pickle.dumps(new):
            raise CaptureError(
                f"the program draws from {name}, Python's own numbers. {NUMBER_CURE}"
            )


@contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        line = user_line(traceback.extract_tb(error.__traceback__))
        message = " ".join(str(error).split())[:300]
        raise CaptureError(
            f"the program cannot be traced: {type(error).__name__} at {line}: {message}. Check "
            "that it runs eagerly; if it does, it uses an operation the tracer does not know: run "
            "with compile=False."
        ) from error
