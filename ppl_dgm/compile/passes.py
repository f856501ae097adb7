"""Rewrites of captured graphs, each a small function from graph to graph that keeps every value."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

aten = torch.ops.aten

_SAME_VALUE = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
_SERIAL = 16  # from here on torch draws normals in blocks
_TINY = 64  # multiplications in one product of a batch
_WIDE = 16  # columns for each row
_RESHAPES = {aten.expand.default, aten.view.default}
_COPIES = _SAME_VALUE | {aten.clone.default}
_VIEWS = (
    "alias detach diagonal expand permute select slice split split_with_sizes squeeze t transpose unbind unfold "
    "unsqueeze view"
)
_VIEW_OF_COPY = {
    getattr(getattr(aten, f"{name}_copy"), overload): getattr(getattr(aten, name), overload)
    for name in _VIEWS.split()
    for overload in getattr(aten, f"{name}_copy").overloads()
    if not overload.endswith("out")
}


def prepare(graph: GraphModule, examples: Sequence[torch.Tensor]) -> None:
    """Rewrite in place what the compiler refuses, or takes apart before `rewrite` comes to see it."""
    separate_loops(graph, _repeated(graph, examples))
    for module in graphs_of(graph):
        if multiply_matrices(module):
            finish(module)


def rewrite(graph: GraphModule) -> None:
    """Run all passes on a functional graph, in the order in which they help each other.

    Example:
        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> from ppl_dgm.compile.passes import rewrite
        >>> graph = make_fx(lambda x: x.exp().expand(100).detach().log(), tracing_mode="fake")(torch.ones(1))
        >>> rewrite(graph)
        >>> [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        ['aten.exp.default', 'aten.log.default', 'aten.expand.default']
    """
    restore_views(graph)
    drop_copies(graph)
    share_equals(graph)
    draw_standard_normals(graph)
    merge_draws(graph)
    transpose_products(graph)
    multiply_small_batches(graph)
    hoist_expands(graph)
    finish(graph)


class Rewriting(CustomGraphPass):
    """`rewrite`, in the form in which Inductor runs it after making a graph functional by itself."""

    def __call__(self, graph: Graph) -> None:
        """Rewrite the graph in place."""
        module: Any = graph.owning_module
        rewrite(module)

    def uuid(self) -> bytes:
        """Name this module's text, for the cache of compiled code."""
        return get_hash_for_files((__file__,))


def fold_literals(graph: GraphModule) -> int:
    """Turn one-element tensors written in the program (`torch.tensor(5.0)`) into `full`, which a compiler can fold."""
    found = 0
    for node in _nodes(graph):
        source = _constant(graph, node) if node.target is aten.lift_fresh_copy.default else None
        if source is None or source.numel() != 1:
            continue
        with graph.graph.inserting_before(node):
            options = {"dtype": source.dtype, "device": source.device, "pin_memory": False}
            full = graph.graph.call_function(aten.full.default, (list(source.shape), source.item()), options)
        _replace(node, full)
        found += 1
    return found


def lift_constants(graph: GraphModule) -> list[torch.Tensor]:
    """Turn the tensors stored in a graph into trailing inputs, return them in that order, and leave none in it."""
    inputs: dict[str, Any] = {}
    constants = []
    for node in [node for node in _nodes(graph) if node.op == "get_attr"]:
        name = str(node.target)
        if not isinstance(getattr(graph, name), torch.Tensor):
            continue
        if name not in inputs:
            inputs[name] = _append_input(graph.graph, name, node)
            constants.append(getattr(graph, name).detach())
        _replace(node, inputs[name])
        graph.graph.erase_node(node)
    for name, _ in list(graph.named_buffers(recurse=False)):
        delattr(graph, name)
    return constants


def functionalise(graph: GraphModule, examples: Sequence[torch.Tensor]) -> GraphModule:
    """Replace in-place operations by values; writes to inputs become copies at the end of the graph."""
    if not any(map(_writes, _nodes(graph))):
        return graph
    separate_loops(graph, _repeated(graph, examples))
    functional = torch.func.functionalize(graph, remove="mutations")
    result = make_fx(functional, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    restore_views(result)
    return result


def restore_views(graph: GraphModule) -> int:
    """Turn copies of views (`slice_copy`), which functionalising leaves in the bodies of loops, back into views."""
    found = 0
    for module in graphs_of(graph):
        copies = [node for node in _nodes(module) if node.target in _VIEW_OF_COPY]
        for node in copies:
            node.target = _VIEW_OF_COPY[node.target]
        separate_loops(module, copies)
        found += len(copies)
    return found


def separate_loops(graph: GraphModule, shared: Sequence[Node]) -> None:
    """Let loops start from copies of nodes whose memory is also another's: they refuse tensors that overlap."""
    for loop in [node for node in _nodes(graph) if isinstance(node.target, HigherOrderOperator)]:

        def copied(value: Node, loop: Node = loop) -> Any:
            return _insert(graph.graph, loop, aten.clone.default, (value,)) if value in shared else value

        loop.args = map_arg(loop.args, copied)
    finish(graph)


def _repeated(graph: GraphModule, examples: Sequence[torch.Tensor]) -> list[Node]:
    """Inputs that lie in the memory of an earlier one."""
    storages = [tensor.untyped_storage()._cdata for tensor in examples]
    inputs = [node for node in _nodes(graph) if node.op == "placeholder"]
    return [node for place, node in enumerate(inputs) if storages[place] in storages[:place]]


def split_writes(graph: GraphModule) -> tuple[GraphModule, tuple[int, ...]]:
    """Turn the writes to inputs at the end of a functional graph into further outputs; return the inputs' positions."""
    inputs = [node for node in _nodes(graph) if node.op == "placeholder"]
    writes = [node for node in _nodes(graph) if node.target is aten.copy_.default and node.args[0] in inputs]
    output: Any = graph.graph.output_node()
    output.args = ([*output.args[0], *(node.args[1] for node in writes)],)
    positions = tuple(inputs.index(node.args[0]) for node in writes)
    for node in writes:
        _replace(node, node.args[1])
    finish(graph)
    return graph, positions


def drop_copies(graph: GraphModule) -> int:
    """Remove `detach`, `alias` and views of the same shape from a functional graph, where they mean nothing."""
    found = [node for node in _nodes(graph) if _is_same_value(node) and node.args[0].op != "get_attr"]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    return len(found)


def _is_same_value(node: Any) -> bool:
    return node.target in _SAME_VALUE or (node.target in _RESHAPES and _shape(node) == _shape(node.args[0]))


def share_equals(graph: GraphModule) -> int:
    """Compute once what is computed twice: the same operation of the same values. Random numbers stay apart."""
    returned = {_storage(node) for node in graph.graph.output_node().all_input_nodes}
    first: dict[Any, Any] = {}
    found = 0
    for node in _nodes(graph):
        if not _is_repeatable(node) or _storage(node) in returned:  # outputs stay tensors of their own
            continue
        earlier = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.graph.erase_node(node)
            found += 1
    return found


def _is_repeatable(node: Any) -> bool:
    known = isinstance(node.target, torch._ops.OpOverload)
    return node.target is operator.getitem or (known and not _writes(node) and not _is_random(node))


def _storage(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def draw_standard_normals(graph: GraphModule) -> int:
    """Turn `empty(...).normal_(0, 1)` into `randn`, which draws the same numbers and has a fast kernel."""
    found = 0
    for node in _nodes(graph):
        if node.target is not aten.normal_functional.default or tuple(node.args[1:]) not in {(), (0.0,), (0.0, 1.0)}:
            continue
        if node.kwargs:
            continue
        value = node.meta["val"]
        with graph.graph.inserting_before(node):
            options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
            drawn = graph.graph.call_function(aten.randn.default, (list(value.shape),), options)
        _replace(node, drawn)
        found += 1
    return found


def merge_draws(graph: GraphModule) -> int:
    """Draw neighbouring small CPU normals in one call, which costs a microsecond each and yields the same numbers.

    Below 16 elements torch draws one number after the other, so that several calls equal one call for all of them.
    """
    draws = [node for node in _nodes(graph) if _is_random(node)]
    merged, start = 0, 0
    while start < len(draws):
        stop, total = start, 0
        while stop < len(draws) and _is_small(draws[stop], draws[start]) and total + _size(draws[stop]) < _SERIAL:
            total, stop = total + _size(draws[stop]), stop + 1
        if stop - start > 1:
            _merge(graph.graph, draws[start:stop], total)
            merged += stop - start
        start = max(stop, start + 1)
    return merged


def _merge(graph: Graph, draws: list[Any], total: int) -> None:
    together = _insert(graph, draws[0], aten.randn.default, ([total],), draws[0].kwargs)
    parts, place = [], 0
    for node in draws:
        part = _insert(graph, draws[0], aten.slice.Tensor, (together, 0, place, place + _size(node)))
        parts.append(_insert(graph, draws[0], aten.view.default, (part, list(_shape(node)))))
        place += _size(node)
    for node, part in zip(draws, parts, strict=True):
        _replace(node, part)


def _is_random(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _is_small(node: Any, first: Any) -> bool:
    same = node.target is aten.randn.default and node.kwargs == first.kwargs
    return same and node.meta["val"].device.type == "cpu" and _size(node) < _SERIAL


def _size(node: Any) -> int:
    return node.meta["val"].numel()


def multiply_matrices(graph: GraphModule) -> int:
    """Turn matrix-vector into matrix-matrix products: Inductor lowers `mv` to a slow multiply and sum."""
    found = [node for node in _nodes(graph) if node.target is aten.mv.default]
    for node in found:
        matrix, vector = node.args
        column = _insert(graph.graph, node, aten.unsqueeze.default, (vector, 1))
        product = _insert(graph.graph, node, aten.mm.default, (matrix, column))
        _replace(node, _insert(graph.graph, node, aten.squeeze.dim, (product, 1)))
    return len(found)


def transpose_products(graph: GraphModule) -> int:
    r"""Compute $(A B)^\top$ as $B^\top A^\top$ where it is wide: what follows reads long rows, and can use vectors.

    So come the chains of a regression, `[chains, data]`. Gradients of weights, about square, stay: they are fast as written.
    """
    found = [node for node in _nodes(graph) if _is_transpose(node) and node.args[0].target is aten.mm.default]
    found = [node for node in found if len(node.args[0].users) == 1 and _is_wide(*_shape(node))]
    for node in found:
        left, right = (_transposed(graph.graph, node, factor) for factor in node.args[0].args)
        _replace(node, _insert(graph.graph, node, aten.mm.default, (right, left)))
    return len(found)


def _is_wide(rows: int, columns: int) -> bool:
    return rows > 1 and columns >= _WIDE * rows


def _is_transpose(node: Any) -> bool:
    if node.target is aten.t.default:
        return len(_shape(node)) == 2
    if node.target is aten.permute.default:
        return list(node.args[1]) == [1, 0]
    return node.target is aten.transpose.int and len(_shape(node)) == 2 and node.args[1] != node.args[2]


def _transposed(graph: Graph, before: Any, factor: Any) -> Any:
    return factor.args[0] if _is_transpose(factor) else _insert(graph, before, aten.permute.default, (factor, [1, 0]))


def multiply_small_batches(graph: GraphModule) -> int:
    """Turn batches of tiny matrix products (those of enumerated latents) into multiply and sum, which can be fused."""
    found = [node for node in _nodes(graph) if node.target is aten.bmm.default and _is_tiny(*node.args)]
    for node in found:
        left, right = node.args
        wide = _insert(graph.graph, node, aten.unsqueeze.default, (left, 3))
        tall = _insert(graph.graph, node, aten.unsqueeze.default, (right, 1))
        product = _insert(graph.graph, node, aten.mul.Tensor, (wide, tall))
        _replace(node, _insert(graph.graph, node, aten.sum.dim_IntList, (product, [2])))
    return len(found)


def _is_tiny(left: Any, right: Any) -> bool:
    rows, inner, columns = *_shape(left)[1:], _shape(right)[2]
    return rows * inner * columns <= _TINY


def hoist_expands(graph: GraphModule) -> int:
    r"""Compute pointwise operations before broadcasting: `f(expand(x))` becomes `expand(f(x))`.

    Pyro expands the parameters of a distribution to its batch shape first, so that `log`, `softplus` or `lgamma` of one
    number runs once per datum. The pass keeps, for each broadcast node, a *compact* node of the same rank with size 1
    along broadcast dimensions, pushes views and pointwise operations through it, and expands at the end.
    """
    compact: dict[Any, Any] = {}
    for node in _nodes(graph):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        small = _compacted(graph.graph, node, compact)
        if small is not None and _shape(small) != _shape(node):
            compact[node] = small
    moved = [node for node in compact if node.target is not aten.expand.default]
    for node, small in compact.items():
        if node.target is aten.clone.default:  # it stays: what follows may need its memory layout
            continue
        with graph.graph.inserting_after(node):
            expanded = graph.graph.call_function(aten.expand.default, (small, list(_shape(node))))
        expanded.meta = dict(node.meta)
        node.replace_all_uses_with(expanded, delete_user_cb=lambda user, keep=expanded: user is not keep)
    return len(moved)


def _compacted(graph: Graph, node: Any, compact: dict[Any, Any]) -> Any:
    if node.target is aten.expand.default:
        source = node.args[0]
        return _with_rank(graph, node, compact.get(source, source), len(_shape(node)))
    if node.target in _COPIES:
        return compact.get(node.args[0])
    if node.target is operator.getitem:
        return _compact_maximum(graph, node, compact)
    if node.target in _RULES:
        return _RULES[node.target](graph, node, compact[node.args[0]]) if node.args[0] in compact else None
    return _compact_pointwise(graph, node, compact) if _is_pointwise(node) else None


def _compact_maximum(graph: Graph, node: Any, compact: dict[Any, Any]) -> Any:
    """An output of `max(x, dim)`, which returns values and indices, over a dimension that is not broadcast."""
    source, index = node.args
    if source.target is not aten.max.dim or source.args[0] not in compact:
        return None
    small = _reduce(graph, source, compact[source.args[0]])
    return _insert(graph, node, operator.getitem, (small, index)) if small is not None else None


def _compact_pointwise(graph: Graph, node: Any, compact: dict[Any, Any]) -> Any:
    inputs = [value for value in node.all_input_nodes if isinstance(value.meta.get("val"), torch.Tensor)]
    if not any(value in compact for value in inputs):
        return None
    shape = torch.broadcast_shapes(*[_shape(compact.get(value, value)) for value in inputs])
    if (1,) * (len(_shape(node)) - len(shape)) + tuple(shape) == _shape(node):
        return None
    args = map_arg(node.args, lambda value: compact.get(value, value))
    kwargs = map_arg(node.kwargs, lambda value: compact.get(value, value))
    small = _insert(graph, node, node.target, args, kwargs)
    if small.meta["val"].dtype != node.meta["val"].dtype:
        return None  # type promotion differs between numbers of dimension zero and above
    return _with_rank(graph, node, small, len(_shape(node)))


def _is_pointwise(node: Any) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _repeat(graph: Graph, node: Any, small: Any) -> Any:
    """The same operation works on the compact tensor."""
    return _insert(graph, node, node.target, (small, *node.args[1:]), node.kwargs)


def _squeeze(graph: Graph, node: Any, small: Any) -> Any:
    dims = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    single = all(_shape(node.args[0])[dim] == 1 for dim in dims)
    return _repeat(graph, node, small) if single else None


def _view(graph: Graph, node: Any, small: Any) -> Any:
    """A view that only inserts or removes dimensions of size 1."""
    before, after = _shape(node.args[0]), _shape(node)
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    sizes = iter([short for short, size in zip(_shape(small), before, strict=True) if size != 1])
    return _insert(graph, node, aten.view.default, (small, [1 if size == 1 else next(sizes) for size in after]))


def _reduce(graph: Graph, node: Any, small: Any) -> Any:
    """A reduction over dimensions that are not broadcast."""
    dims = node.args[1] if len(node.args) > 1 else []
    dims = ([dims] if isinstance(dims, int) else dims) or range(len(_shape(small)))
    kept = all(_shape(small)[dim] == _shape(node.args[0])[dim] for dim in dims)
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


def _nodes(graph: GraphModule) -> list[Any]:
    return list(graph.graph.nodes)


def graphs_of(graph: GraphModule) -> list[GraphModule]:
    """Return the graph and those of its loops."""
    return [module for module in graph.modules() if isinstance(module, GraphModule)]


def _writes(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _with_rank(graph: Graph, before: Any, node: Any, rank: int) -> Any:
    shape = _shape(node)
    if len(shape) == rank:
        return node
    return _insert(graph, before, aten.view.default, (node, [1] * (rank - len(shape)) + list(shape)))


def _insert(graph: Graph, before: Any, target: Any, args: Any, kwargs: Any = None) -> Any:
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs or {})
    values, options = (map_arg(part, lambda value: value.meta["val"]) for part in (args, kwargs or {}))
    node.meta["val"] = target(*values, **options)
    return node


def _replace(node: Any, by: Any) -> None:
    by.meta = {**node.meta, **by.meta}
    node.replace_all_uses_with(by)
    if node.op == "call_function":
        node.graph.erase_node(node)


def _append_input(graph: Graph, name: str, like: Any) -> Any:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    place = graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before(next(iter(graph.nodes)))
    with place:
        node = graph.placeholder(f"constant_{name}")
    node.meta.update(like.meta)
    return node


def _constant(graph: GraphModule, node: Any) -> torch.Tensor | None:
    source = node.args[0]
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    return getattr(graph, str(source.target))


def finish(graph: GraphModule) -> None:
    """Make the code of a rewritten graph, without what nobody reads."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
