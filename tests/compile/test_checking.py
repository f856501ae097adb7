"""Compiled numbers prove themselves.

Factors of sums survive, and wrong code is found before it moves anything.
"""

import math

import pytest
import torch

from ppl_dgm.compile import CaptureError, Switch, TrainStep, capture, compile_function, repeat
from ppl_dgm.compile.graph.passes import prepare
from ppl_dgm.compile.inductor import checking
from ppl_dgm.compile.inductor.checking import CheckedRun, WrongNumbersError, written

A, B = torch.randn(16, 4), torch.randn(16, 3)


def scaled_sums(start: torch.Tensor):
    """Every way to add a multiple of a matrix product to a tensor."""
    total, less = start.clone(), start.clone()

    def sums(a, b):
        product = a.mT @ b
        total.mul_(0.9).add_(product, alpha=0.1)
        less.mul_(0.9).sub_(product, alpha=0.1)
        return (
            torch.add(start, product, alpha=0.1),
            torch.add(product, start + 1, alpha=3.0),
            torch.sub(start, product, alpha=0.1),
            torch.add(start + 1, (a.mT.unsqueeze(0) @ b.unsqueeze(0)).squeeze(0), alpha=3.0),
            torch.add(start, product, alpha=1),
        )

    return sums, total, less


def test_multiples_in_sums_survive_the_compiler() -> None:
    """Inductor fuses `add(x, mm, alpha=)` to `addmm` and loses the factor."""
    start = torch.randn(4, 3)
    sums, total, less = scaled_sums(start)
    product = A.mT @ B
    expected = (
        start + 0.1 * product,
        product + 3 * (start + 1),
        start - 0.1 * product,
        start + 1 + 3 * product,
        start + product,
    )
    result = compile_function(sums, (A, B))(A, B)
    for given, right in zip(result, expected, strict=True):
        torch.testing.assert_close(given, right)
    torch.testing.assert_close(total, 0.9 * start + 0.1 * product)
    torch.testing.assert_close(less, 0.9 * start - 0.1 * product)


def test_no_sum_with_a_factor_reaches_the_compiler() -> None:
    sums, *_ = scaled_sums(torch.randn(4, 3))
    captured = capture(sums, (A, B))
    prepare(captured.graph, [*captured.examples, *captured.lifted])
    factors = [node.kwargs.get("alpha", 1) for node in captured.graph.graph.nodes]
    assert set(factors) == {1}


# ---- checks at birth and later -------------------------------------------------------------------


class Counter:
    """Code that is right, or wrong by a factor from a given call on."""

    def __init__(self, captured, wrong_from: int | None = None, factor: float = 1.5) -> None:
        self.captured, self.wrong_from, self.factor, self.calls = captured, wrong_from, factor, 0

    def __call__(self, *flat):
        self.calls += 1
        out = self.captured.graph(*flat)
        wrong = self.wrong_from is not None and self.calls >= self.wrong_from
        return [value * self.factor for value in out] if wrong else out


def moving():
    """A function that draws, writes to a buffer and returns a value."""
    buffer = torch.ones(3)

    def step(x):
        buffer.add_(torch.randn(3)).mul_(0.5)
        return (buffer * x).sum(), torch.arange(3)

    return step, buffer


def test_right_code_is_checked_at_some_calls_and_moves_only_once() -> None:
    step, buffer = moving()
    captured = capture(step, (torch.ones(3),))
    code = Counter(captured)
    run = CheckedRun(code, captured)
    torch.manual_seed(0)
    values = [run(torch.ones(3), *captured.lifted)[0] for _ in range(12)]
    assert code.calls == 12 + 2  # the first and the tenth are made twice
    after = buffer.clone()
    buffer.fill_(1.0)
    torch.manual_seed(0)
    for value in values:
        torch.testing.assert_close(value, step(torch.ones(3))[0])
    torch.testing.assert_close(buffer, after)


@pytest.mark.parametrize("call", [1, 10, 100])
def test_wrong_code_is_found_and_moves_nothing(call: int) -> None:
    step, buffer = moving()
    captured = capture(step, (torch.ones(3),))
    checks_before = sum(earlier < call for earlier in checking.CHECKED)
    run = CheckedRun(Counter(captured, wrong_from=call + checks_before), captured)
    for _ in range(call - 1):
        run(torch.ones(3), *captured.lifted)
    before = buffer.clone()
    with pytest.raises(WrongNumbersError, match="output 0 differs by"):
        run(torch.ones(3), *captured.lifted)
    assert torch.equal(buffer, before)


def test_a_buffer_that_is_written_wrongly_is_named() -> None:
    norm = torch.nn.BatchNorm1d(2).double()
    captured = capture(lambda x: norm(x).sum(), (torch.randn(5, 2).double(),))

    def wrong(*flat):
        out = captured.graph(*flat)
        norm.running_var.add_(0.1)
        return out

    run = CheckedRun(wrong, captured)
    with pytest.raises(WrongNumbersError, match=r"BatchNorm1d.running_var differs by 0\.1"):
        run(torch.randn(5, 2).double(), *captured.lifted)


def test_ill_conditioned_numbers_are_no_fault() -> None:
    """A difference of nearly equal numbers is mostly rounding.

    Another order of summation is not wrong.
    """
    x = torch.randn(1000) * 1e4

    def cancelled(x):
        return x.sum() - x.flip(0).sum(), (x / x.norm()).sum()

    captured = capture(cancelled, (x,))

    def reordered(*flat):
        (x,) = flat
        order = torch.argsort(x)
        return [x[order].sum() - x[order].flip(0).sum(), (x[order] / x.norm()).sum()]

    CheckedRun(reordered, captured)(x)


@pytest.mark.parametrize("looped", [False, True])
def test_differences_of_nearly_equal_results_are_no_fault(looped: bool) -> None:
    """Of the two phases of a Boltzmann machine: no digit of the inputs moves their rounding."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 30, 6, generator=generator) < 0.5).float()
    weight = 1e-6 * torch.randn(6, 3, generator=generator)

    def contrast(x, y, weight):
        return (x @ weight).sigmoid().sum(0) - (y @ weight).sigmoid().sum(0)

    def function(x, y, weight):
        if not looped:
            return contrast(x, y, weight)
        return repeat(torch.tensor(2), lambda sums, _: sums + contrast(x, y, weight), weight.sum(0))

    def exact(*flat):
        x, y, weight = (tensor.double() for tensor in flat[:3])
        sums = 2 * contrast(x, y, weight) + weight.sum(0) if looped else contrast(x, y, weight)
        return [sums.float()]

    captured = capture(function, (x, y, weight))
    CheckedRun(exact, captured)(x, y, weight, *captured.lifted)
    wrong = CheckedRun(lambda *flat: [exact(*flat)[0] + 1e-3], captured)
    with pytest.raises(WrongNumbersError, match="output 0 differs by"):
        wrong(x, y, weight, *captured.lifted)


def test_inputs_that_are_written_to_are_known_through_views() -> None:
    a, b = torch.zeros(3, 2), torch.zeros(3)

    def write(x):
        a[:, 0].add_(x)
        return a.sum() + b.sum()

    captured = capture(write, (torch.ones(3),))
    places = written(captured.graph)
    assert [captured.lifted[place - 1] is a for place in places] == [True]


def test_what_is_made_from_an_input_is_not_the_input() -> None:
    """Data of a fit were written back, as if the step had changed them, and then captured anew."""

    def write(x):
        doubled = (2 * x).add_(1.0)
        return doubled.view(-1).mul_(3.0) + torch.zeros_like(x).fill_(1.0)

    assert written(capture(write, (torch.ones(3),)).graph) == ()


# ---- what callers do -----------------------------------------------------------------------------


def broken(self, flat):
    return "output 0 differs by 1"


def test_a_switch_falls_back_with_one_line_or_raises(monkeypatch, caplog) -> None:
    monkeypatch.setattr(CheckedRun, "_difference", broken)
    monkeypatch.setattr("ppl_dgm.compile.inductor.cost.saving", lambda seconds: math.inf)
    switch = Switch("auto")
    function = torch.nn.Softplus()
    with caplog.at_level("WARNING", "ppl_dgm.compile"):
        results = [switch(function, torch.ones(2)) for _ in range(8)]
    assert all(torch.equal(result, function(torch.ones(2))) for result in results)
    assert [record.message.count("other numbers") for record in caplog.records] == [1]
    with pytest.raises(CaptureError, match="other numbers"):
        Switch(True)(function, torch.ones(2))


@pytest.mark.slow
def test_a_step_that_is_wrong_moves_nothing(monkeypatch) -> None:
    monkeypatch.setattr(CheckedRun, "_difference", broken)
    weight = torch.nn.Parameter(torch.zeros(2))
    step = TrainStep(lambda x: ((weight - x) ** 2).sum(), torch.optim.SGD([weight], lr=0.5))
    with pytest.raises(WrongNumbersError):
        step(torch.ones(2))
    assert torch.equal(weight.detach(), torch.zeros(2))


def test_the_order_of_a_long_sum_is_rounding() -> None:
    """A million equal numbers, added one by one, are off by far more than pairs of sums are."""
    numbers = torch.full((1_000_000,), 0.1, dtype=torch.float64)
    by_pairs, in_turn = numbers.sum(), numbers.cumsum(0)[-1]
    assert checking.unlike(in_turn, by_pairs)
    assert not checking.unlike(in_turn, by_pairs, longest=len(numbers))
    assert checking.unlike(by_pairs * (1 + 1e-8), by_pairs, longest=len(numbers))
    single = by_pairs.float()
    assert checking.unlike(single * 1.001, single, longest=10**9)
