"""Rewrites of functional graphs before they are compiled.

Each is a small function that keeps every value.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from ppl_dgm.compile.graph.functionalise import repeated, restore_views, separate_loops
from ppl_dgm.compile.graph.hoist_expand import hoist_expands
from ppl_dgm.compile.graph.nodes import (
    finish,
    graphs_of,
    insert,
    is_random,
    nodes,
    replace,
    shape,
    writes,
)

__all__ = ["prepare", "rewrite"]

aten = torch.ops.aten

_SAME_VALUE = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
_RESHAPES = {aten.expand.default, aten.view.default}
_SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.add_.Tensor, aten.sub_.Tensor}
_ONES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar}
_SERIAL = 16  # from here on torch draws normals in blocks
_TINY = 64  # multiplications in one product of a batch
_WIDE = 16  # columns for each row


def prepare(graph: GraphModule, examples: Sequence[torch.Tensor]) -> None:
    """Rewrite a graph in place before Inductor takes it.

    This replaces what Inductor refuses, or takes apart before `rewrite` sees it.
    """
    separate_loops(graph, repeated(graph, examples))
    for module in graphs_of(graph):
        found = multiply_matrices(module) + draw_bernoullis(module) + spell_out_alpha(module)
        if found + spoil_failed_factors(module):
            finish(module)


def rewrite(graph: GraphModule) -> None:
    """Apply all passes to a functional graph, in order.

    The order is that in which they help each other.

    Graphs that read memory as it lies are left as they are: passes keep values, not where they lie.

    Example:
        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> from ppl_dgm.compile.graph.passes import rewrite
        >>> function = lambda x: x.exp().expand(100).detach().log()
        >>> graph = make_fx(function, tracing_mode="fake")(torch.ones(1))
        >>> rewrite(graph)
        >>> [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        ['aten.exp.default', 'aten.log.default', 'aten.expand.default', 'aten.clone.default']
    """
    restore_views(graph)
    if any(map(_reads_memory, nodes(graph))):
        return
    drop_copies(graph)
    drop_identities(graph)
    share_equals(graph)
    draw_standard_normals(graph)
    merge_draws(graph)
    transpose_products(graph)
    multiply_small_batches(graph)
    hoist_expands(graph)
    finish(graph)


def _reads_memory(node: Any) -> bool:
    return node.target is aten.as_strided.default and node.args[0].op != "placeholder"


def drop_copies(graph: GraphModule) -> int:
    """Remove `detach`, `alias` and views of the same shape.

    They mean nothing in a functional graph.
    """
    found = [
        node for node in nodes(graph) if _is_same_value(node) and node.args[0].op != "get_attr"
    ]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    return len(found)


def _is_same_value(node: Any) -> bool:
    return node.target in _SAME_VALUE or (
        node.target in _RESHAPES and shape(node) == shape(node.args[0])
    )


def drop_identities(graph: GraphModule) -> int:
    """Remove products with 1, first powers and identity permutations.

    Scales and handlers produce them.
    """
    output: Any = graph.graph.output_node()
    inputs = [node for node in nodes(graph) if node.op == "placeholder"]
    kept = set().union(
        *map(_memory, (*inputs, *output.all_input_nodes))
    )  # outputs stay tensors of their own
    found = [
        node
        for node in nodes(graph)
        if _is_identity(node) and not (_memory(node) | _memory(node.args[0])) & kept
    ]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    return len(found)


def _is_identity(node: Any) -> bool:
    if node.target is aten.permute.default:
        return list(node.args[1]) == list(range(len(shape(node))))
    if node.target not in _ONES or not isinstance(node.args[1], int | float) or node.args[1] != 1:
        return False
    value, source = node.meta["val"], node.args[0].meta["val"]
    return (value.shape, value.dtype) == (source.shape, source.dtype)


def share_equals(graph: GraphModule) -> int:
    """Compute equal operations on equal values only once.

    Random numbers are not shared.
    """
    returned = set().union(*map(_memory, graph.graph.output_node().all_input_nodes))
    first: dict[Any, Any] = {}
    found = 0
    for node in nodes(graph):
        if (
            not _is_repeatable(node) or _memory(node) & returned
        ):  # outputs stay tensors of their own
            continue
        earlier = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.graph.erase_node(node)
            found += 1
    return found


def _is_repeatable(node: Any) -> bool:
    known = isinstance(node.target, torch._ops.OpOverload)
    return node.target is operator.getitem or (known and not writes(node) and not is_random(node))


def _memory(node: Any) -> set[int]:
    """Where the tensors lie that an operation returns."""
    tensors = [
        leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)
    ]
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def draw_standard_normals(graph: GraphModule) -> int:
    """Replace `empty(...).normal_(0, 1)` by `randn`.

    `randn` draws the same numbers and has a fast kernel.
    """
    found = 0
    for node in nodes(graph):
        if node.target is not aten.normal_functional.default or tuple(node.args[1:]) not in {
            (),
            (0.0,),
            (0.0, 1.0),
        }:
            continue
        if node.kwargs:
            continue
        value = node.meta["val"]
        with graph.graph.inserting_before(node):
            options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
            drawn = graph.graph.call_function(aten.randn.default, (list(value.shape),), options)
        replace(node, drawn)
        found += 1
    return found


def merge_draws(graph: GraphModule) -> int:
    """Merge neighbouring small CPU normal draws into one call.

    Each call costs a microsecond, and one call yields the same numbers.

    Below 16 elements torch draws one number after the other, so that several calls equal one call
    for all of them.
    """
    draws = [node for node in nodes(graph) if is_random(node)]
    merged, start = 0, 0
    while start < len(draws):
        stop, total = start, 0
        while (
            stop < len(draws)
            and _is_small(draws[stop], draws[start])
            and total + _size(draws[stop]) < _SERIAL
        ):
            total, stop = total + _size(draws[stop]), stop + 1
        if stop - start > 1:
            _merge(graph.graph, draws[start:stop], total)
            merged += stop - start
        start = max(stop, start + 1)
    return merged


def _merge(graph: Graph, draws: list[Any], total: int) -> None:
    together = insert(graph, draws[0], aten.randn.default, ([total],), draws[0].kwargs)
    parts, place = [], 0
    for node in draws:
        part = insert(graph, draws[0], aten.slice.Tensor, (together, 0, place, place + _size(node)))
        parts.append(insert(graph, draws[0], aten.view.default, (part, list(shape(node)))))
        place += _size(node)
    for node, part in zip(draws, parts, strict=True):
        replace(node, part)


def _is_small(node: Any, first: Any) -> bool:
    same = node.target is aten.randn.default and node.kwargs == first.kwargs
    return same and node.meta["val"].device.type == "cpu" and _size(node) < _SERIAL


def _size(node: Any) -> int:
    return node.meta["val"].numel()


def multiply_matrices(graph: GraphModule) -> int:
    """Turn matrix-vector products into matrix-matrix products.

    Inductor lowers `mv` to a slow multiply and sum.
    """
    found = [node for node in nodes(graph) if node.target is aten.mv.default]
    for node in found:
        matrix, vector = node.args
        column = insert(graph.graph, node, aten.unsqueeze.default, (vector, 1))
        product = insert(graph.graph, node, aten.mm.default, (matrix, column))
        replace(node, insert(graph.graph, node, aten.squeeze.dim, (product, 1)))
    return len(found)


def spell_out_alpha(graph: GraphModule) -> int:
    """Write `alpha` of `add` and `sub` as a product.

    `add(x, y, alpha=c)` becomes a product and a sum. Inductor loses the factor of a matrix product.

    Its `addmm` fusion (torch 2.13, `_inductor/fx_passes/post_grad.py`) takes any such sum for one
    with alpha 1.
    """
    found = [
        node for node in nodes(graph) if node.target in _SUMS and node.kwargs.get("alpha", 1) != 1
    ]
    for node in found:
        first, second = node.args
        product = insert(graph.graph, node, aten.mul.Tensor, (second, node.kwargs["alpha"]))
        replace(node, insert(graph.graph, node, node.target, (first, product)))
    return len(found)


def spoil_failed_factors(graph: GraphModule) -> int:
    """Let factors of matrices that have none be NaN.

    The error that torch raises in their place is an effect, for which torch 2.13 gives the graph an
    input that nobody fills (`torch/_higher_order_ops/effects.py`).
    """
    checks = [node for node in nodes(graph) if node.target is aten._linalg_check_errors.default]
    for check in checks:
        info = check.args[0]
        parts = info.args[0].users if info.target is operator.getitem else {}
        for factor in [part for part in parts if part.args[1] == 0]:
            users = list(factor.users)
            fine = insert(graph.graph, check, aten.eq.Scalar, (info, 0))
            for _ in range(factor.meta["val"].dim() - info.meta["val"].dim()):
                fine = insert(graph.graph, check, aten.unsqueeze.default, (fine, -1))
            given = (fine, factor, math.nan)
            known = insert(graph.graph, check, aten.where.ScalarOther, given)
            for user in users:
                user.replace_input_with(factor, known)
        graph.graph.erase_node(check)
    return len(checks)


def draw_bernoullis(graph: GraphModule) -> int:
    """Draw double-precision Bernoulli values from double-precision uniform numbers.

    Torch compares double numbers too, but Inductor takes single ones.
    """
    found = [
        node for node in nodes(graph) if node.target is aten.bernoulli.default and not node.kwargs
    ]
    found = [node for node in found if node.meta["val"].dtype is torch.float64]
    for node in found:
        probs, value = node.args[0], node.meta["val"]
        options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
        uniform = insert(graph.graph, node, aten.rand.default, (list(value.shape),), options)
        below = insert(graph.graph, node, aten.lt.Tensor, (uniform, probs))
        replace(
            node, insert(graph.graph, node, aten._to_copy.default, (below,), {"dtype": value.dtype})
        )
    return len(found)


def transpose_products(graph: GraphModule) -> int:
    r"""Compute wide products $(A B)^\top$ as $B^\top A^\top$.

    What follows reads long rows then, and can use vector instructions.

    So come the chains of a regression, `[chains, data]`. Gradients of weights, about square, stay:
    they are fast as written.
    """
    found = [
        node
        for node in nodes(graph)
        if _is_transpose(node) and node.args[0].target is aten.mm.default
    ]
    found = [node for node in found if len(node.args[0].users) == 1 and _is_wide(*shape(node))]
    for node in found:
        left, right = (_transposed(graph.graph, node, factor) for factor in node.args[0].args)
        replace(node, insert(graph.graph, node, aten.mm.default, (right, left)))
    return len(found)


def _is_wide(rows: int, columns: int) -> bool:
    return rows > 1 and columns >= _WIDE * rows


def _is_transpose(node: Any) -> bool:
    if node.target is aten.t.default:
        return len(shape(node)) == 2
    if node.target is aten.permute.default:
        return list(node.args[1]) == [1, 0]
    return (
        node.target is aten.transpose.int and len(shape(node)) == 2 and node.args[1] != node.args[2]
    )


def _transposed(graph: Graph, before: Any, factor: Any) -> Any:
    return (
        factor.args[0]
        if _is_transpose(factor)
        else insert(graph, before, aten.permute.default, (factor, [1, 0]))
    )


def multiply_small_batches(graph: GraphModule) -> int:
    """Turn batches of tiny matrix products into multiply and sum.

    Enumerated latents give such products. Multiply and sum can be fused.
    """
    found = [
        node for node in nodes(graph) if node.target is aten.bmm.default and _is_tiny(*node.args)
    ]
    for node in found:
        left, right = node.args
        wide = insert(graph.graph, node, aten.unsqueeze.default, (left, 3))
        tall = insert(graph.graph, node, aten.unsqueeze.default, (right, 1))
        product = insert(graph.graph, node, aten.mul.Tensor, (wide, tall))
        replace(node, insert(graph.graph, node, aten.sum.dim_IntList, (product, [2])))
    return len(found)


def _is_tiny(left: Any, right: Any) -> bool:
    rows, inner, columns = *shape(left)[1:], shape(right)[2]
    return rows * inner * columns <= _TINY
