"""Compute before broadcasting what is the same for all."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.fx.node import map_arg

from ppl_dgm.compile.graph.nodes import insert, is_random, nodes, shape, writes
from ppl_dgm.compile.torch_internals import HigherOrderOperator

__all__ = ["hoist_expands"]

aten = torch.ops.aten

_IN_FULL: dict[str, Any] = {"memory_format": torch.contiguous_format}
_COPIES = {
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.clone.default,
}


def hoist_expands(graph: GraphModule) -> int:
    r"""Compute pointwise operations before broadcasting: `f(expand(x))` becomes `expand(f(x))`.

    Pyro expands the parameters of a distribution to its batch shape first, so that `log`,
    `softplus` or `lgamma` of one number runs once per datum. The pass keeps, for each broadcast
    node, a *compact* node of the same rank with size 1 along broadcast dimensions, pushes views and
    pointwise operations through it, and expands at the end. What is returned or given to a loop is
    written out in full, as the operations had it.
    """
    compact: dict[Any, Any] = {}
    for node in nodes(graph):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        small = _compacted(graph.graph, node, compact)
        if small is not None and shape(small) != shape(node):
            compact[node] = small
    moved = [node for node in compact if node.target is not aten.expand.default]
    for node, small in compact.items():
        if node.target is aten.clone.default:  # it stays: what follows may need its memory layout
            continue
        with graph.graph.inserting_after(node):
            expanded = graph.graph.call_function(aten.expand.default, (small, list(shape(node))))
        expanded.meta = {**node.meta, "val": small.meta["val"].expand(shape(node))}
        node.replace_all_uses_with(
            expanded, delete_user_cb=lambda user, keep=expanded: user is not keep
        )
        bound = [user for user in expanded.users if _keeps_layout(user)]
        if bound and node.meta["val"].is_contiguous():
            with graph.graph.inserting_after(expanded):
                full = graph.graph.call_function(aten.clone.default, (expanded,), _IN_FULL)
            full.meta = dict(node.meta)
            for user in bound:
                user.replace_input_with(expanded, full)
    return len(moved)


def _keeps_layout(user: Any) -> bool:
    """Whether a node depends on the layout of its inputs."""
    return user.op == "output" or isinstance(user.target, HigherOrderOperator)


def _compacted(graph: Graph, node: Any, compact: dict[Any, Any]) -> Any:
    if node.target is aten.expand.default:
        source = node.args[0]
        return _with_rank(graph, node, compact.get(source, source), len(shape(node)))
    if node.target in _COPIES:
        return compact.get(node.args[0])
    if node.target is operator.getitem:
        return _compact_maximum(graph, node, compact)
    if node.target in _RULES:
        return (
            _RULES[node.target](graph, node, compact[node.args[0]])
            if node.args[0] in compact
            else None
        )
    return _compact_pointwise(graph, node, compact) if _is_pointwise(node) else None


def _compact_maximum(graph: Graph, node: Any, compact: dict[Any, Any]) -> Any:
    """Compute an output of `max(x, dim)` on the compact tensor.

    `max(x, dim)` returns values and indices. It is handled over a dimension that is not broadcast.
    """
    source, index = node.args
    if source.target is not aten.max.dim or source.args[0] not in compact:
        return None
    small = _reduce(graph, source, compact[source.args[0]])
    return insert(graph, node, operator.getitem, (small, index)) if small is not None else None


def _compact_pointwise(graph: Graph, node: Any, compact: dict[Any, Any]) -> Any:
    inputs = [
        value for value in node.all_input_nodes if isinstance(value.meta.get("val"), torch.Tensor)
    ]
    if not any(value in compact for value in inputs):
        return None
    joint = torch.broadcast_shapes(*[shape(compact.get(value, value)) for value in inputs])
    if (1,) * (len(shape(node)) - len(joint)) + tuple(joint) == shape(node):
        return None
    args = map_arg(node.args, lambda value: compact.get(value, value))
    kwargs = map_arg(node.kwargs, lambda value: compact.get(value, value))
    small = insert(graph, node, node.target, args, kwargs)
    if small.meta["val"].dtype != node.meta["val"].dtype:
        return None  # type promotion differs between numbers of dimension zero and above
    return _with_rank(graph, node, small, len(shape(node)))


def _is_pointwise(node: Any) -> bool:
    known = (
        isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    )
    return known and not writes(node) and not is_random(node)


def _repeat(graph: Graph, node: Any, small: Any) -> Any:
    """The same operation works on the compact tensor."""
    return insert(graph, node, node.target, (small, *node.args[1:]), node.kwargs)


def _squeeze(graph: Graph, node: Any, small: Any) -> Any:
    dims = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    single = all(shape(node.args[0])[dim] == 1 for dim in dims)
    return _repeat(graph, node, small) if single else None


def _view(graph: Graph, node: Any, small: Any) -> Any:
    """Apply a view that only changes dimensions of size 1.

    The view inserts or removes such dimensions.
    """
    before, after = shape(node.args[0]), shape(node)
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    sizes = iter([short for short, size in zip(shape(small), before, strict=True) if size != 1])
    return insert(
        graph, node, aten.view.default, (small, [1 if size == 1 else next(sizes) for size in after])
    )


def _reduce(graph: Graph, node: Any, small: Any) -> Any:
    """A reduction over dimensions that are not broadcast."""
    dims = node.args[1] if len(node.args) > 1 else []
    dims = ([dims] if isinstance(dims, int) else dims) or range(len(shape(small)))
    kept = all(shape(small)[dim] == shape(node.args[0])[dim] for dim in dims)
    return _repeat(graph, node, small) if kept else None


_RULES: dict[Any, Callable[[Graph, Any, Any], Any]] = {
    aten.unsqueeze.default: _repeat,
    aten.permute.default: _repeat,
    aten.transpose.int: _repeat,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.sum.dim_IntList: _reduce,
    aten.amax.default: _reduce,
    aten.full_like.default: _repeat,
}


def _with_rank(graph: Graph, before: Any, node: Any, rank: int) -> Any:
    missing = rank - len(shape(node))
    return (
        insert(graph, before, aten.view.default, (node, [1] * missing + list(shape(node))))
        if missing
        else node
    )
