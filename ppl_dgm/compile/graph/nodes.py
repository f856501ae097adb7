"""Utilities to inspect, insert and replace graph nodes."""

from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.fx.node import map_arg

from ppl_dgm.compile.torch_internals import HigherOrderOperator

__all__ = [
    "finish",
    "graphs_of",
    "has_loops",
    "insert",
    "is_random",
    "nodes",
    "replace",
    "shape",
    "writes",
]


def nodes(graph: GraphModule) -> list[Any]:
    """Return a copy of the list of nodes.

    So the graph can be changed meanwhile.
    """
    return list(graph.graph.nodes)


def graphs_of(graph: GraphModule) -> list[GraphModule]:
    """Return the graph and those of its loops."""
    return [module for module in graph.modules() if isinstance(module, GraphModule)]


def shape(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's tensor."""
    return tuple(node.meta["val"].shape)


def writes(node: Any) -> bool:
    """Whether an operation writes to one of its inputs."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_random(node: Any) -> bool:
    """Whether an operation draws random numbers."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    )


def insert(graph: Graph, before: Any, target: Any, args: Any, kwargs: Any = None) -> Any:
    """Insert an operation before a node."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs or {})
    values, options = (
        map_arg(part, lambda value: value.meta["val"]) for part in (args, kwargs or {})
    )
    node.meta["val"] = target(*values, **options)
    return node


def replace(node: Any, by: Any) -> None:
    """Let another node take the place of a node."""
    by.meta = {**node.meta, **by.meta}
    node.replace_all_uses_with(by)
    if node.op == "call_function":
        node.graph.erase_node(node)


def finish(graph: GraphModule) -> None:
    """Remove unused nodes and regenerate the code of a graph."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def has_loops(graph: GraphModule) -> bool:
    """Whether a graph has loops of its own."""
    return any(isinstance(node.target, HigherOrderOperator) for node in graph.graph.nodes)
