"""Every pass keeps the values of a graph and does what it says, on graphs of a few nodes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_dgm.compile import capture, repeat
from ppl_dgm.compile.graph import functionalise as passes
from ppl_dgm.compile.graph import passes as rewriting
from ppl_dgm.compile.graph.hoist_expand import hoist_expands
from ppl_dgm.compile.graph.nodes import finish

aten = torch.ops.aten


def graph_of(fn: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    return make_fx(fn, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def applied(rewrite: Callable[[GraphModule], int], graph: GraphModule) -> int:
    found = rewrite(graph)
    finish(graph)
    return found


def targets(graph: GraphModule) -> list[Any]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def shapes(graph: GraphModule, target: Any) -> list[tuple[int, ...]]:
    return [tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.target is target]


def test_literals_become_fills() -> None:
    graph = graph_of(lambda x: x + torch.tensor(5.0) + torch.tensor([1.0, 2.0]), torch.ones(2))
    assert applied(passes.fold_literals, graph) == 1
    assert targets(graph).count(aten.full.default) == 1
    torch.testing.assert_close(graph(torch.ones(2)), torch.tensor([7.0, 8.0]))


def test_constants_become_inputs_by_reference() -> None:
    table = torch.arange(3.0)
    graph = graph_of(lambda x: x + table + table, torch.ones(3))
    (constant,) = passes.lift_constants(graph)
    finish(graph)
    assert constant.data_ptr() == table.data_ptr()
    assert not list(graph.buffers())
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
    torch.testing.assert_close(graph(torch.ones(3), constant), 1 + 2 * table)


def test_functional_graphs_write_their_inputs_at_the_end() -> None:
    def step(x: Tensor, y: Tensor) -> Tensor:
        x.detach().mul_(2.0)
        x[0] = 7.0
        return x + y

    graph = passes.functionalise(
        graph_of(step, torch.ones(2), torch.ones(2)), [torch.ones(2), torch.ones(2)]
    )
    assert targets(graph)[-1] is aten.copy_.default
    assert not [t for t in targets(graph)[:-1] if t._schema.is_mutable]
    x = torch.ones(2)
    torch.testing.assert_close(graph(x, torch.ones(2)), torch.tensor([8.0, 3.0]))
    torch.testing.assert_close(x, torch.tensor([7.0, 2.0]))


def test_views_stay_views_in_the_bodies_of_loops() -> None:
    def doubled(x: Tensor, n: Tensor) -> Tensor:
        return repeat(
            n,
            lambda carry, _: (
                torch.cat([carry[2:], 2 * carry[:2]]).view(2, 2).sum(0).expand(2, 2).reshape(4)
            ),
            x,
        )

    x, n = torch.arange(4.0), torch.tensor(2)
    graph = passes.functionalise(capture(doubled, (x, n)).graph, [x, n])
    bodies = [module for module in graph.modules() if isinstance(module, GraphModule)]
    names = [str(target) for body in bodies for target in targets(body)]
    assert "aten.slice.Tensor" in names
    assert not [name for name in names if name.endswith(("_copy.Tensor", "_copy.default"))]
    torch.testing.assert_close(graph(x, n)[0], doubled(x, n))


def test_copies_of_views_become_views_again_and_go_where_they_mean_nothing() -> None:
    x = torch.arange(4.0)
    graph = graph_of(lambda x: torch.detach_copy(torch.slice_copy(x, 0, 1)) + 1.0, x)
    rewriting.rewrite(graph)
    assert targets(graph) == [aten.slice.Tensor, aten.add.Tensor]
    torch.testing.assert_close(graph(x), x[1:] + 1.0)


def test_a_loop_may_be_given_what_it_also_reads_by_reference() -> None:
    x, n = torch.arange(4.0), torch.tensor(3)

    def add(given: Tensor, n: Tensor) -> Tensor:
        return repeat(n, lambda carry, given: carry + x + given, torch.zeros(4), given)

    captured = capture(add, (x, n))
    graph = passes.functionalise(captured.graph, [x, n, *captured.lifted])
    torch.testing.assert_close(graph(x, n, *captured.lifted)[0], 6 * x)


@pytest.mark.parametrize(
    "turned", [lambda a, b: (a @ b.t()).t(), lambda a, b: (a @ b.T).transpose(0, 1).exp()]
)
def test_transposed_products_are_computed_as_such(
    turned: Callable[[Tensor, Tensor], Tensor],
) -> None:
    left, right = torch.arange(192.0).reshape(64, 3) / 128, torch.arange(12.0).reshape(4, 3) / 8
    graph = passes.functionalise(graph_of(turned, left, right), [left, right])
    assert applied(rewriting.transpose_products, graph) == 1
    assert shapes(graph, aten.mm.default) == [(4, 64)]
    torch.testing.assert_close(graph(left, right), turned(left, right))


def test_products_that_are_read_both_ways_stay() -> None:
    def both_ways(left: Tensor, right: Tensor) -> list[Tensor]:
        product = left @ right
        return [product.t(), product.sum(0)]

    assert (
        applied(
            rewriting.transpose_products, graph_of(both_ways, torch.ones(64, 3), torch.ones(3, 4))
        )
        == 0
    )


def test_products_about_square_stay() -> None:
    graph = graph_of(lambda a, b: (a @ b).t(), torch.ones(2, 3), torch.ones(3, 4))
    assert applied(rewriting.transpose_products, graph) == 0


def test_writes_become_outputs() -> None:
    def step(x: Tensor) -> list[Tensor]:
        x.add_(1.0)
        return [2 * x]

    graph, written = passes.split_writes(
        passes.functionalise(graph_of(step, torch.ones(2)), [torch.ones(2)])
    )
    x = torch.ones(2)
    result, new = graph(x)
    assert written == (0,)
    torch.testing.assert_close(
        (result, new, x), (torch.full((2,), 4.0), torch.full((2,), 2.0), torch.ones(2))
    )


def test_detached_values_are_the_values() -> None:
    graph = passes.functionalise(
        graph_of(lambda x: x.detach() + x.detach().detach(), torch.ones(2)), [torch.ones(2)]
    )
    assert applied(rewriting.drop_copies, graph) == 3
    assert targets(graph) == [aten.add.Tensor]


def test_views_of_the_same_shape_are_dropped() -> None:
    x = torch.randn(2, 3)
    graph = passes.functionalise(
        graph_of(lambda x: x.expand(2, 3).view(2, 3).view(3, 2) + 1.0, x), [x]
    )
    applied(rewriting.drop_copies, graph)
    assert targets(graph) == [aten.view.default, aten.add.Tensor]
    torch.testing.assert_close(graph(x), x.view(3, 2) + 1.0)


def test_products_with_one_first_powers_and_idle_permutations_are_dropped() -> None:
    def idle(x: Tensor) -> Tensor:
        y = x.exp()
        return ((y * 1.0) / 1).pow(1.0).permute(0, 1) * 2.0 + y.permute(1, 0) * 1.5

    x = torch.randn(3, 3)
    graph = graph_of(idle, x)
    assert applied(rewriting.drop_identities, graph) == 4
    assert torch.equal(graph(x), idle(x))


def test_products_with_one_that_change_the_type_stay() -> None:
    graph = graph_of(lambda n: (n + 2) * 1.0 + 0.5, torch.arange(3))
    assert applied(rewriting.drop_identities, graph) == 0
    assert torch.equal(graph(torch.arange(3)), torch.tensor([2.5, 3.5, 4.5]))


def test_products_with_one_that_are_returned_stay_tensors_of_their_own() -> None:
    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp()
        return y, y * 1.0, x * 1.0

    graph = graph_of(outputs, torch.ones(3))
    assert applied(rewriting.drop_identities, graph) == 0
    first, second, third = graph(x := torch.ones(3))
    first.zero_()
    third.zero_()
    assert (second == torch.ones(3).exp()).all()
    assert (x == 1.0).all()


def test_values_that_an_input_hands_on_before_it_is_written_stay() -> None:
    def swap(x: Tensor, y: Tensor) -> Tensor:
        kept = x * 1.0
        x.copy_(y)
        y.copy_(kept)
        return kept.sum()

    x, y = torch.ones(2), torch.zeros(2)
    graph = passes.functionalise(graph_of(swap, x, y), [x, y])
    applied(rewriting.drop_identities, graph)
    graph(x, y)
    assert (x == 0.0).all()
    assert (y == 1.0).all()


def test_equal_operations_are_computed_once() -> None:
    def twice(x: Tensor) -> Tensor:
        return (x.exp() + 1.0).log() * (x.exp() + 1.0).log() + (x.exp() + 2.0)

    x = torch.randn(3)
    graph = graph_of(twice, x)
    assert applied(rewriting.share_equals, graph) == 4
    assert targets(graph).count(aten.exp.default) == 1
    assert targets(graph).count(aten.add.Tensor) == 3
    torch.testing.assert_close(graph(x), twice(x))


def test_equal_operations_of_numbers_of_other_types_are_not_the_same() -> None:
    def typed(x: Tensor) -> Tensor:
        return (x + 1) + (x + 1.0)

    x = torch.tensor([1, 2])
    graph = graph_of(typed, x)
    assert applied(rewriting.share_equals, graph) == 0
    torch.testing.assert_close(graph(x), typed(x))


@pytest.mark.parametrize(
    "draw", [torch.rand_like, torch.bernoulli, lambda p: torch.empty_like(p).exponential_()]
)
def test_equal_draws_stay_apart(draw: Callable[[Tensor], Tensor]) -> None:
    p = torch.full((50,), 0.5)
    graph = passes.functionalise(graph_of(lambda p: draw(p) - draw(p), p), [p])
    applied(rewriting.share_equals, graph)
    assert graph(p).count_nonzero() > 10


def test_equal_outputs_stay_tensors_of_their_own() -> None:
    x = torch.ones(3)
    graph = graph_of(lambda x: (x + 1.0, (x + 1.0).view(3, 1)), x)
    assert applied(rewriting.share_equals, graph) == 0
    first, second = graph(x)
    first.zero_()
    assert (second == 2.0).all()


@pytest.mark.parametrize("size", [(), (3,), (40,)])
def test_standard_normals_are_the_same_numbers(size: tuple[int, ...]) -> None:
    graph = passes.functionalise(graph_of(lambda: torch.empty(size).normal_()), [])
    assert applied(rewriting.draw_standard_normals, graph) == 1
    assert targets(graph) == [aten.randn.default]
    torch.manual_seed(1)
    expected = torch.empty(size).normal_()
    torch.manual_seed(1)
    torch.testing.assert_close(graph(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_draws_are_the_same_numbers(dtype: torch.dtype) -> None:
    def draws() -> list[Tensor]:
        small = [torch.randn(size, dtype=dtype) for size in [(), (2, 3), (8,), (5,)]]
        return [
            *small,
            torch.rand(2, dtype=dtype),
            torch.randn(3, dtype=dtype),
            torch.randn(40, dtype=dtype),
        ]

    graph = graph_of(draws)
    assert (
        applied(rewriting.merge_draws, graph) == 3
    )  # 1 + 6 + 8 fit below 16; 5 do not, and `rand` ends the group
    torch.manual_seed(1)
    expected = draws()
    torch.manual_seed(1)
    torch.testing.assert_close(graph(), expected, rtol=0, atol=0)


def test_vectors_are_multiplied_as_matrices() -> None:
    matrix, vector = torch.randn(3, 4), torch.randn(4)
    graph = graph_of(torch.mv, matrix, vector)
    assert applied(rewriting.multiply_matrices, graph) == 1
    assert aten.mv.default not in targets(graph)
    torch.testing.assert_close(graph(matrix, vector), matrix @ vector)


def test_pointwise_operations_run_before_expansion() -> None:
    def log_prob(x: Tensor, scale: Tensor) -> Tensor:
        wide = scale.exp().expand(100).log()
        return -((x / wide) ** 2) - wide.unsqueeze(0).expand(1, 100).log1p().squeeze(0)

    x, scale = torch.rand(100), torch.tensor(0.5)
    graph = passes.functionalise(graph_of(log_prob, x, scale), [x, scale])
    assert applied(hoist_expands, graph) >= 2
    for unary in (aten.log.default, aten.log1p.default):
        assert all(torch.Size(shape).numel() == 1 for shape in shapes(graph, unary))
    torch.testing.assert_close(graph(x, scale), log_prob(x, scale))


def test_tiny_products_of_a_batch_are_sums() -> None:
    left, right, wide = torch.randn(50, 1, 3), torch.randn(50, 3, 2), torch.randn(50, 3, 40)
    graph = graph_of(lambda a, b, c: (torch.bmm(a, b), torch.bmm(a, c)), left, right, wide)
    assert applied(rewriting.multiply_small_batches, graph) == 1
    torch.testing.assert_close(
        graph(left, right, wide), (torch.bmm(left, right), torch.bmm(left, wide))
    )


def test_reductions_and_views_of_what_is_broadcast() -> None:
    """log-sum-exp over classes, the same for each of 100 data: computed once."""

    def evidence(logits: Tensor, x: Tensor) -> Tensor:
        wide = logits[None].expand(100, 3)[:, None].reshape(1, 100, 3).permute(0, 2, 1)
        top = wide.max(1, keepdim=True)[0]
        total = (
            (wide - top).exp().sum(1).log() + top.squeeze(1) + torch.full_like(top, 2.0).squeeze(1)
        )
        return total.squeeze(0) + wide.amax(1)[0] - x

    logits, x = torch.randn(3), torch.randn(100)
    graph = passes.functionalise(graph_of(evidence, logits, x), [logits, x])
    applied(hoist_expands, graph)
    for operation in (
        aten.exp.default,
        aten.log.default,
        aten.amax.default,
        aten.full_like.default,
    ):
        assert all(torch.Size(shape).numel() <= 3 for shape in shapes(graph, operation))
    torch.testing.assert_close(graph(logits, x), evidence(logits, x))


def test_reductions_over_what_is_broadcast_count_it() -> None:
    def total(x: Tensor) -> Tensor:
        return x[:, None].expand(3, 5).exp().sum(1) + x[:, None].expand(3, 5).max(1)[0]

    x = torch.randn(3)
    graph = passes.functionalise(graph_of(total, x), [x])
    applied(hoist_expands, graph)
    torch.testing.assert_close(graph(x), total(x))


def test_expansion_over_one_of_two_dimensions() -> None:
    def outer(x: Tensor, y: Tensor) -> Tensor:
        return (
            (x[:, None].expand(3, 4).exp() * y[None].expand(3, 4).sin())
            .permute(1, 0)
            .transpose(0, 1)
            .cos()
        )

    x, y = torch.randn(3), torch.randn(4)
    graph = passes.functionalise(graph_of(outer, x, y), [x, y])
    applied(hoist_expands, graph)
    assert shapes(graph, aten.exp.default) == [(3, 1)]
    assert shapes(graph, aten.sin.default) == [(1, 4)]
    torch.testing.assert_close(graph(x, y), outer(x, y))


def test_types_are_those_of_the_full_operation() -> None:
    """A number of dimension zero does not promote a type, one of dimension one does."""

    def mixed(x: Tensor, y: Tensor) -> Tensor:
        return x.expand(3) * y.expand(3)

    x, y = torch.tensor(2.0), torch.tensor(3.0, dtype=torch.float64)
    graph = passes.functionalise(graph_of(mixed, x, y), [x, y])
    applied(hoist_expands, graph)
    torch.testing.assert_close(graph(x, y), mixed(x, y))


def test_equal_outputs_of_several_values_stay_tensors_of_their_own() -> None:
    graph = graph_of(lambda x: (x.max(0)[0], x.max(0)[0]), torch.eye(3))
    assert applied(rewriting.share_equals, graph) == 0


def test_hoisted_outputs_have_memory_of_their_own() -> None:
    graph = graph_of(lambda x: (x.exp().expand(5, 4) * 2.0, x.expand(5, 4)), torch.ones(4))
    assert applied(hoist_expands, graph) == 1
    doubled, expanded = graph(torch.ones(4))
    assert doubled.add_(1.0).stride() == (4, 1)
    assert expanded.stride() == (0, 1)


def test_what_loops_are_given_lies_in_memory_as_it_did() -> None:
    """A loop refuses to carry what its turns return in another layout."""

    def doubled(x: Tensor, turns: Tensor) -> Tensor:
        return repeat(turns, lambda carry, _: 2 * carry, x.exp().expand(5, 4) * 2.0)

    given = torch.ones(4), torch.tensor(2)
    graph = capture(doubled, given).graph
    assert applied(hoist_expands, graph) == 1
    loop = next(node for node in graph.graph.nodes if str(node.target) == "while_loop")
    assert all(part.meta["val"].is_contiguous() for part in loop.args[2])
    torch.testing.assert_close(graph(*given)[0], doubled(*given))


def test_random_numbers_are_not_shared_by_expansion() -> None:
    def noisy(p: Tensor) -> Tensor:
        return torch.bernoulli(p.expand(50))

    p = torch.tensor(0.5)
    graph = passes.functionalise(graph_of(noisy, p), [p])
    applied(hoist_expands, graph)
    assert graph(p).unique().numel() == 2


def test_all_passes_together() -> None:
    def step(weight: Tensor, x: Tensor) -> Tensor:
        loss = (
            torch.mv(x, weight).sigmoid().log()
            - torch.tensor(2.0).expand(5).log()
            + torch.empty(5).normal_()
        )
        weight.add_(loss.sum())
        return loss

    x, weight, twin = torch.randn(5, 3), torch.ones(3), torch.ones(3)
    graph = passes.functionalise(graph_of(step, weight, x), [weight, x])
    rewriting.prepare(graph, [weight, x])
    rewriting.rewrite(graph)
    torch.manual_seed(1)
    expected = step(twin, x)
    torch.manual_seed(1)
    torch.testing.assert_close(graph(weight, x), expected)
    torch.testing.assert_close(weight, twin)


def test_copies_that_a_view_needs_stay() -> None:
    """A batch of products with one matrix, whose transpose is laid out by columns.

    The graph can be traced again.
    """

    def whiten(factor: Tensor, points: Tensor) -> Tensor:
        return (factor @ points.unsqueeze(-1)).squeeze(-1)

    factor, points = torch.linalg.cholesky(torch.eye(3).expand(2, 3, 3) + 0.5), torch.randn(4, 2, 3)
    graph = graph_of(whiten, factor, points)
    rewriting.rewrite(graph)
    again = make_fx(graph)(factor, points)
    torch.testing.assert_close(again(factor, points), whiten(factor, points))


def test_double_bernoullis_are_the_same_draws() -> None:
    probs = torch.rand(4, 20, dtype=torch.float64)
    graph = graph_of(torch.bernoulli, probs)
    rewriting.prepare(graph, [probs])
    assert aten.bernoulli.default not in targets(graph)
    torch.manual_seed(1)
    expected, after = torch.bernoulli(probs), torch.rand(1)
    torch.manual_seed(1)
    torch.testing.assert_close((graph(probs), torch.rand(1)), (expected, after), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("rows", [lambda x: x[:, 1:3] * 1, lambda x: x[:, :1].expand(3, 2) * 2])
def test_memory_that_is_read_as_it_lies_lies_as_written(rows: Callable[[Tensor], Tensor]) -> None:
    def frames(x: Tensor) -> Tensor:
        return rows(x.sin()).as_strided((2, 4), (2, 1)).exp()

    x = torch.arange(12.0).reshape(3, 4)
    graph = graph_of(frames, x)
    rewriting.rewrite(graph)
    torch.testing.assert_close(graph(x), frames(x))


@pytest.mark.parametrize("factorise", [torch.linalg.cholesky, torch.linalg.inv])
def test_factors_of_matrices_that_have_none_are_nan(factorise: Callable) -> None:
    """Inductor compiles no check of them."""
    good, singular = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.zeros(2, 2)
    graph = graph_of(lambda x: factorise(x).exp(), torch.stack([good, good]))
    assert applied(rewriting.spoil_failed_factors, graph) == 1
    assert aten._linalg_check_errors.default not in targets(graph)
    found = graph(torch.stack([good, singular]))
    assert torch.allclose(found[0], factorise(good).exp())
    assert found[1].isnan().any()
    assert applied(rewriting.spoil_failed_factors, graph) == 0
