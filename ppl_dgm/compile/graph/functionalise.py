"""Transformations that make a captured graph functional and self-contained.

They treat literals, constants, writes, and loops whose inputs share memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ppl_dgm.compile.graph.nodes import finish, graphs_of, insert, nodes, replace, writes
from ppl_dgm.compile.torch_internals import HigherOrderOperator, make_fx

__all__ = [
    "fold_literals",
    "functionalise",
    "lift_constants",
    "repeated",
    "restore_views",
    "separate_loops",
    "split_writes",
]

aten = torch.ops.aten

_VIEWS = (
    "alias detach diagonal expand permute select slice split split_with_sizes squeeze t transpose "
    "unbind unfold unsqueeze view"
)
_VIEW_OF_COPY = {
    getattr(getattr(aten, f"{name}_copy"), overload): getattr(getattr(aten, name), overload)
    for name in _VIEWS.split()
    for overload in getattr(aten, f"{name}_copy").overloads()
    if not overload.endswith("out")
}


def fold_literals(graph: GraphModule) -> int:
    """Replace one-element tensor literals of the program by `full`.

    A literal is, for example, `torch.tensor(5.0)`. A compiler can fold `full`.
    """
    found = 0
    for node in nodes(graph):
        source = _constant(graph, node) if node.target is aten.lift_fresh_copy.default else None
        if source is None or source.numel() != 1:
            continue
        with graph.graph.inserting_before(node):
            options = {"dtype": source.dtype, "device": source.device, "pin_memory": False}
            full = graph.graph.call_function(
                aten.full.default, (list(source.shape), source.item()), options
            )
        replace(node, full)
        found += 1
    return found


def lift_constants(graph: GraphModule) -> list[torch.Tensor]:
    """Turn the tensors stored in a graph into trailing inputs.

    The tensors are returned in the order of these inputs, and none is left in the graph.
    """
    inputs: dict[str, Any] = {}
    constants = []
    for node in [node for node in nodes(graph) if node.op == "get_attr"]:
        name = str(node.target)
        if not isinstance(getattr(graph, name), torch.Tensor):
            continue
        if name not in inputs:
            inputs[name] = _append_input(graph.graph, name, node)
            constants.append(getattr(graph, name).detach())
        replace(node, inputs[name])
        graph.graph.erase_node(node)
    for name, _ in list(graph.named_buffers(recurse=False)):
        delattr(graph, name)
    return constants


def functionalise(graph: GraphModule, examples: Sequence[torch.Tensor]) -> GraphModule:
    """Replace in-place operations of a graph by functional ones.

    Writes to inputs become copies at the end of the graph.
    """
    if not any(map(writes, nodes(graph))):
        return graph
    separate_loops(graph, repeated(graph, examples))
    functional = torch.func.functionalize(graph, remove="mutations")
    result = make_fx(functional, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    restore_views(result)
    return result


def restore_views(graph: GraphModule) -> int:
    """Turn copies of views (`slice_copy`) back into views.

    Functionalising leaves such copies in the bodies of loops.
    """
    found = 0
    for module in graphs_of(graph):
        copies = [node for node in nodes(module) if node.target in _VIEW_OF_COPY]
        for node in copies:
            node.target = _VIEW_OF_COPY[node.target]
        separate_loops(module, copies)
        found += len(copies)
    return found


def separate_loops(graph: GraphModule, shared: Sequence[Node]) -> None:
    """Copy inputs of loops that share memory with others.

    Loops refuse tensors that overlap.
    """
    for loop in [node for node in nodes(graph) if isinstance(node.target, HigherOrderOperator)]:

        def copied(value: Node, loop: Node = loop) -> Any:
            return (
                insert(graph.graph, loop, aten.clone.default, (value,))
                if value in shared
                else value
            )

        loop.args = map_arg(loop.args, copied)
    finish(graph)


def repeated(graph: GraphModule, examples: Sequence[torch.Tensor]) -> list[Node]:
    """Return the inputs that share memory with an earlier one."""
    storages = [tensor.untyped_storage()._cdata for tensor in examples]
    inputs = [node for node in nodes(graph) if node.op == "placeholder"]
    return [node for place, node in enumerate(inputs) if storages[place] in storages[:place]]


def split_writes(graph: GraphModule) -> tuple[GraphModule, tuple[int, ...]]:
    """Turn writes to inputs into additional outputs of the graph.

    The graph is functional and has these writes at its end. The positions of the inputs are
    returned with it.
    """
    inputs = [node for node in nodes(graph) if node.op == "placeholder"]
    copies = [
        node
        for node in nodes(graph)
        if node.target is aten.copy_.default and node.args[0] in inputs
    ]
    output: Any = graph.graph.output_node()
    output.args = ([*output.args[0], *(node.args[1] for node in copies)],)
    positions = tuple(inputs.index(node.args[0]) for node in copies)
    for node in copies:
        replace(node, node.args[1])
    finish(graph)
    return graph, positions


def _append_input(graph: Graph, name: str, like: Any) -> Any:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    place = (
        graph.inserting_after(inputs[-1])
        if inputs
        else graph.inserting_before(next(iter(graph.nodes)))
    )
    with place:
        node = graph.placeholder(f"constant_{name}")
    node.meta.update(like.meta)
    return node


def _constant(graph: GraphModule, node: Any) -> torch.Tensor | None:
    source = node.args[0]
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    return getattr(graph, str(source.target))
