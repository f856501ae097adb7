"""Loops in machine code, with what is carried in every way, small and large.

Some differ in nothing but their body.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_dgm.compile import CaptureError, compile_function, compile_loop, repeat

SMALL, LARGE = 3, 40_000  # entries; what is large is handed from step to step without a copy

Step = Callable[[Any, Tensor, Any], tuple[Any, Any]]


def add(state: Any, x: Tensor, _: Any) -> tuple[Any, Any]:
    new = {name: part + x for name, part in state.items()}
    return new, new["a"].sum()


def swap(state: Any, x: Tensor, _: Any) -> tuple[Any, Any]:
    return {"a": state["b"], "b": state["a"]}, x + state["a"].sum()


def keep_one(state: Any, x: Tensor, _: Any) -> tuple[Any, Any]:
    return {"a": state["a"], "b": state["b"] * x}, state["b"][0]


def draw(state: Any, x: Tensor, _: Any) -> tuple[Any, Any]:
    noise = torch.randn_like(state["a"])
    return {"a": noise, "b": state["b"] + x * noise}, noise.sum()


def multiply(state: Any, x: Tensor, _: Any) -> tuple[Any, Any]:
    matrix = state["a"][:3].outer(state["b"][:3])
    new = {name: (matrix @ part[:3]).softmax(0).sum() * part + x for name, part in state.items()}
    return new, matrix.trace()


def run_by_hand(step: Step, state: Any, rows: Tensor) -> tuple[Any, Tensor]:
    """The loop in Python."""
    outputs = []
    for row in rows:
        state, output = step(state, row, ())
        outputs.append(output)
    return state, torch.stack(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("step", [add, swap, keep_one, draw, multiply])
def test_a_compiled_loop_is_its_steps(step: Step, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(size, generator=generator) for name in "ab"}
    rows = torch.rand(5, generator=generator)
    before = {name: part.clone() for name, part in state.items()}
    loop = compile_loop(step, state, rows)
    for seed in range(2):  # a second call meets the first one's tensors
        torch.manual_seed(seed)
        expected = run_by_hand(step, state, rows)
        torch.manual_seed(seed)
        result = loop(state, rows)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, before, rtol=0, atol=0)
    torch.testing.assert_close(loop(state, rows, (), 0)[0], before, rtol=0, atol=0)


@pytest.mark.slow
def test_results_of_an_earlier_call_stay() -> None:
    loop = compile_loop(add, {"a": torch.zeros(3)}, torch.ones(4))
    first, _ = loop({"a": torch.zeros(3)}, torch.ones(4))
    loop({"a": torch.ones(3)}, torch.ones(4))
    assert first["a"].tolist() == [4.0, 4.0, 4.0]


@pytest.mark.slow
def test_loops_that_differ_in_their_body_only() -> None:
    def doubled(x: Tensor, n: Tensor) -> Tensor:
        return repeat(n, lambda carry, _: 2 * carry, x)

    def tripled(x: Tensor, n: Tensor) -> Tensor:
        return repeat(n, lambda carry, _: 3 * carry, x)

    x, n = torch.ones(2), torch.tensor(3)
    results = [compile_function(fn, (x, n))(x, n).tolist() for fn in (doubled, tripled)]
    assert results == [[8.0, 8.0], [27.0, 27.0]]


@pytest.mark.slow
def test_loops_within_loops() -> None:
    def step(state: Tensor, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        new = repeat(n, lambda carry, x: carry * x + 1.0, state, x)
        return new, new.sum()

    rows, n = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2)
    loop = compile_loop(step, torch.zeros(2), rows, n)
    final, history = loop(torch.zeros(2), rows, n)
    assert history.tolist() == [4.0, 22.0, 206.0]  # s -> x (x s + 1) + 1, twice the entry
    assert final.tolist() == [103.0, 103.0]


ONE = torch.ones(())
UNLIKE = {
    "type": lambda s: {"a": s["a"].double(), "b": s["b"]},
    "shape": lambda s: {"a": s["a"].reshape(1), "b": s["b"]},
    "order": lambda s: {"b": s["b"], "a": s["a"]},
    "length": lambda s: {"a": s["a"]},
}


@pytest.mark.parametrize("change", UNLIKE.values(), ids=UNLIKE)
def test_a_turn_that_returns_another_kind_of_state_is_refused(change: Callable[[Any], Any]) -> None:
    start, rows = {"a": ONE, "b": 2 * ONE}, torch.ones(3)
    with pytest.raises(CaptureError, match="must return what it was given"):
        compile_loop(lambda s, x, _: (change(s), x), start, rows, backend="eager")
    with pytest.raises(CaptureError, match="must return what it was given"):
        compile_function(
            lambda n: repeat(n, lambda s, _: change(s), start), (torch.tensor(2),), backend="eager"
        )


@pytest.mark.parametrize("inputs", [(), ONE, torch.ones(0), (torch.ones(4), torch.ones(3))])
def test_inputs_of_a_loop_must_be_stacked(inputs: Any) -> None:
    with pytest.raises(
        ValueError, match="expected at least one, stacked, all with equally many rows"
    ):
        compile_loop(lambda s, x, _: (s, s), ONE, inputs, backend="eager")


@pytest.mark.parametrize("count", [torch.tensor(2.5), torch.tensor([2])])
def test_loops_are_counted_by_an_integer(count: Tensor) -> None:
    with pytest.raises(ValueError, match="expected an integer"):
        repeat(count, lambda s, _: s, ONE)


def test_bodies_of_loops_may_be_rewritten_after_capture() -> None:
    """An enumerated latent sums by the largest term, whose place nobody asks for."""
    x, turns = torch.randn(3, 4), torch.tensor(2)

    def relax(x: Tensor, turns: Tensor) -> Tensor:
        return repeat(turns, lambda carry, _: carry - carry.max(0, True)[0], x)

    compiled = compile_function(relax, (x, turns), backend="eager")
    torch.testing.assert_close(compiled(x, turns), relax(x, turns))


@pytest.mark.slow
def test_a_loop_may_start_from_parts_of_what_it_also_reads() -> None:
    def step(x: Tensor, turns: Tensor) -> Tensor:
        return repeat(turns, lambda carry, fixed: carry.sin() + fixed[0] * fixed[1], x, (x, x[:1]))

    x, turns = torch.randn(5), torch.tensor(3)
    torch.testing.assert_close(compile_function(step, (x, turns))(x, turns), step(x, turns))
