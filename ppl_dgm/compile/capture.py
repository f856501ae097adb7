"""Capture: one run of a function of tensors under Pyro's handlers becomes a static graph."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from ppl_dgm.compile.errors import CaptureError, user_line
from ppl_dgm.compile.handlers import SiteTracker, traceable_pyro
from ppl_dgm.compile.lifting import Discovery, Lifting, Replacement, refuse_selections
from ppl_dgm.compile.nodes import finish
from ppl_dgm.compile.passes import fold_literals, functionalise, lift_constants, split_writes
from ppl_dgm.compile.repeat import Body, emit_loop, outside_of_traces, running_loops

aten = torch.ops.aten
Buffers = dict[str, torch.Tensor | None]


@dataclass(frozen=True)
class Captured:
    """A captured function: its graph, and the tensors it reads by reference.

    Attributes:
        graph: maps the flat input tensors followed by `lifted` to the flat output tensors; no Pyro handler is in it.
        lifted: parameters, buffers and closure tensors the function touched, each once; in-place writes reach them.
            They may change their values, not their types, shapes or devices.
        examples: the flat input tensors it was captured with; shapes, dtypes and devices are theirs.
        rebuild: nests flat output tensors as the function does.
        modes: the modules that ran, with their `training` flag: dropout and batch norm are baked in.
    """

    graph: GraphModule
    lifted: tuple[torch.Tensor, ...]
    examples: tuple[torch.Tensor, ...]
    rebuild: Callable[[Sequence[torch.Tensor]], Any]
    modes: tuple[tuple[torch.nn.Module, bool], ...] = ()

    def is_current(self) -> bool:
        """Whether all modules are still in the mode (`train` or `eval`) in which they were captured."""
        return all(module.training == training for module, training in self.modes)

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph as it is (no compiler), on new inputs and the lifted tensors' present values."""
        with torch.no_grad():
            outputs = self.graph(*tensor_leaves(inputs), *self.lifted)
        return self.rebuild(outputs)


def capture(fn: Callable[..., Any], inputs: Sequence[Any]) -> Captured:
    r"""Trace `fn(*inputs)` to a static graph that holds no Python.

    The function may run Pyro programs under handlers and call `torch.autograd.grad` inside. It is run twice on tensors
    without data: first to find every tensor it reads besides its inputs (parameters, buffers, closures; aliases count
    once), then to record the graph with those tensors as further inputs. So the graph follows their present values, and
    what `fn` does to them in place, `\theta \leftarrow \theta - \epsilon \nabla f`, happens at every call.

    Args:
        fn: function of nested tuples, lists and dicts of tensors, with the same structure for all values. Leaves that
            are no tensors are held fixed.
        inputs: example arguments; their shapes, dtypes and devices are those of the graph.

    Returns:
        The graph with the tensors it reads; random numbers are drawn anew at every call, from torch's own generator.

    Raises:
        CaptureError: the function reads a value on the host, has data-dependent shapes or control flow, creates or
            replaces parameters or buffers, or uses a sampler that does.

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
    inputs = tuple(inputs)
    tensors = tensor_leaves(inputs)

    def call(values: Sequence[torch.Tensor]) -> Any:
        return fn(*with_tensors(inputs, values))

    with _unchanged_buffers() as modules, _one_error(), unmoved_generators():
        with traceable_pyro() as tracker:
            lifted = _discover(call, tensors, tracker)
        with traceable_pyro() as tracker:
            graph, rebuild = _trace(call, tensors, lifted, tracker)
    _refuse_host_reads(graph)
    fold_literals(graph)
    lifted = [*lifted, *lift_constants(graph)]
    modes = tuple((module, module.training) for module in modules)
    return _without_unused(Captured(graph, tuple(lifted), tuple(tensors), rebuild, modes))


def unmoved_generators() -> Any:
    """Leave torch's generators where they were: some operations draw real numbers while they are traced or compiled."""
    return torch.random.fork_rng()


def tensor_leaves(inputs: Any) -> list[torch.Tensor]:
    """Return the tensors among the leaves of a nested input, in the order of torch's pytrees (but several times faster)."""
    return leaves_and_rest(inputs)[0]


def leaves_and_rest(inputs: Any) -> tuple[list[torch.Tensor], list[Any]]:
    """Return the tensors of a nested input, and what else tells one from another: lengths, names, other leaves."""
    found: list[torch.Tensor] = []
    rest: list[Any] = []
    _collect(inputs, found, rest)
    return found, rest


def _collect(value: Any, found: list[torch.Tensor], rest: list[Any]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif type(value) in (tuple, list) or hasattr(value, "_make"):
        rest += (type(value), len(value))
        for item in value:
            _collect(item, found, rest)
    elif type(value) is dict:
        rest.append(tuple(value))
        for item in value.values():
            _collect(item, found, rest)
    elif type(value) not in pytree.SUPPORTED_NODES:
        rest.append(value)
    else:
        leaves, structure = pytree.tree_flatten(value)
        found += [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        rest += [repr(structure), *(leaf for leaf in leaves if not isinstance(leaf, torch.Tensor))]


def with_tensors(inputs: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Return the nested input with its tensors replaced, in order, and its other leaves kept."""
    leaves, structure = pytree.tree_flatten(inputs)
    rest = iter(tensors)
    return pytree.tree_unflatten([next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure)


def _discover(call: Callable[..., Any], tensors: list[torch.Tensor], tracker: SiteTracker) -> list[torch.Tensor]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    discovery = Discovery(mode, tracker.site)
    with mode:
        values = [_leaf(mode.from_tensor(tensor.detach()), tensor) for tensor in tensors]
        with discovery, running_loops(_one_turn):
            call(values)
    return list(discovery.found.values())


def _one_turn(_: torch.Tensor, body: Body, carry: Any, fixed: Any) -> Any:
    return body(carry, fixed)


def _write_loop(count: torch.Tensor, body: Body, carry: Any, fixed: Any) -> Any:
    """Write a loop into the trace: its body is captured by itself, what it reads of the trace lifted like all else."""
    with outside_of_traces():
        examples = [_like(leaf) for leaf in tensor_leaves((carry, fixed))]
        captured = capture(body, with_tensors((carry, fixed), examples))
        flat = [*examples, *map(_like, captured.lifted)]
        graph, written = split_writes(functionalise(captured.graph, flat))
    if written:
        raise CaptureError("the body of a loop writes to a tensor in place. Hand the tensor from turn to turn instead.")
    final = emit_loop(graph, tensor_leaves(carry), [*tensor_leaves(fixed), *captured.lifted], count)
    return with_tensors(carry, final)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that only looks like another, which may be one of a trace."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _trace(
    call: Callable[..., Any],
    tensors: list[torch.Tensor],
    lifted: list[torch.Tensor],
    tracker: SiteTracker,
) -> tuple[GraphModule, Callable[[Sequence[torch.Tensor]], Any]]:
    found: list[Callable[[Iterator[torch.Tensor]], Any]] = []

    def flat(*values: torch.Tensor) -> list[torch.Tensor]:
        leaves = [_leaf(value, tensor) for value, tensor in zip(values, [*tensors, *lifted], strict=True)]
        given = leaves[: len(tensors)]
        replacement = Replacement(lifted, leaves[len(tensors) :], tracker.site)
        with replacement, running_loops(_write_loop):
            result = call(given)
        outputs: list[torch.Tensor] = []
        found.append(_nesting(result, outputs))
        refuse_selections(outputs)
        return [_as_output(output, replacement) for output in outputs]

    traced = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)
    graph = traced(*(_concrete(tensor) for tensor in (*tensors, *lifted)))
    return graph, lambda outputs: found[-1](iter(outputs))


def _nesting(output: Any, leaves: list[torch.Tensor]) -> Callable[[Iterator[torch.Tensor]], Any]:
    """Gather the tensors of a nested output, and return how to nest others alike; None stays where it is."""
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
    raise CaptureError(f"a captured function returns tensors only, but returned {type(output).__name__}")


def _concrete(tensor: torch.Tensor) -> torch.Tensor:
    return _like(tensor) if isinstance(tensor, FakeTensor) else tensor.detach()


def _leaf(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.detach().requires_grad_() if like.requires_grad else value


def _as_output(output: Any, replacement: Lifting) -> torch.Tensor:
    return replacement.stand_in(output).detach()


def _refuse_host_reads(graph: GraphModule) -> None:
    """Reads inside library code, where the function mode is off, show up as nodes."""
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
def _one_error() -> Iterator[None]:
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        line = user_line(traceback.extract_tb(error.__traceback__))
        message = " ".join(str(error).split())[:300]
        raise CaptureError(
            f"the program cannot be traced: {type(error).__name__} at {line}: {message}. Check that it runs eagerly; "
            "if it does, it uses an operation the tracer does not know: run with compile=False."
        ) from error


@contextmanager
def _unchanged_buffers() -> Iterator[dict[torch.nn.Module, Buffers]]:
    """Refuse modules that assign a new tensor to a buffer: the assignment would happen once, at capture."""
    before: dict[torch.nn.Module, Buffers] = {}

    def remember(module: torch.nn.Module, _: Any) -> None:
        before.setdefault(module, dict(module._buffers))

    handle = register_module_forward_pre_hook(remember)
    try:
        yield before
        replaced = [(m, name) for m, old in before.items() for name in old if old[name] is not m._buffers[name]]
    finally:
        handle.remove()
        for module, old in before.items():
            module._buffers.update(old)
    if replaced:
        names = ", ".join(f"{type(module).__name__}.{name}" for module, name in replaced)
        raise CaptureError(f"a module assigns to its buffer ({names}) while it runs. Write in place, with `copy_`.")
