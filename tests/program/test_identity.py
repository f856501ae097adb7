"""Identities tell computations apart by content, and say in what they differ."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ppl_dgm.objectives import ELBO
from ppl_dgm.program.identity import difference, digest, identify


def closing_over(value: object) -> Callable:
    def function() -> object:
        return value

    return function


def net(value: float, buffer: float = 0.0, slope: float = 0.1) -> nn.Module:
    layers = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LeakyReLU(slope), nn.BatchNorm1d(1))
    layers[0].weight.data.fill_(value)
    layers[2].running_mean.fill_(buffer)
    return layers


class Slotted:
    """An object of a user's, with a setting and something of its own."""

    def __init__(self, scale: float, cache: object = None) -> None:
        self.scale, self._cache = scale, cache


SAME: list[Callable[[], object]] = [
    lambda: torch.arange(6.0).reshape(2, 3),
    lambda: torch.arange(6.0).reshape(3, 2).T,
    lambda: {"a": [1, 2.5], "b": (None, "c")},
    lambda: {1, 2, 3},
    lambda: net(1.0),
    lambda: closing_over(torch.ones(2)),
    lambda: partial(closing_over, 2.0),
    lambda: Slotted(1.0),
    lambda: float("nan"),
]


@pytest.mark.parametrize("make", SAME)
def test_equal_contents_have_equal_digests(make: Callable[[], object]) -> None:
    assert digest(make()) == digest(make())


DIFFERENT: dict[str, tuple[object, object]] = {
    "values": (torch.zeros(2), torch.ones(2)),
    "the last bit": (torch.tensor([1.0]).double(), torch.tensor([1.0]).double() + 2**-52),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "shapes": (torch.zeros(2), torch.zeros(2, 1)),
    "zeros of two signs": (0.0, -0.0),
    "kinds": ([1, 2], (1, 2)),
    "orders": ([1, 2], [2, 1]),
    "nesting": ([[1], 2], [[1, 2]]),
    "parameters": (net(1.0), net(2.0)),
    "buffers": (net(1.0), net(1.0, 1.0)),
    "settings of modules": (net(1.0), net(1.0, slope=0.2)),
    "tensors closed over": (closing_over(torch.zeros(1)), closing_over(torch.ones(1))),
    "numbers closed over": (closing_over(1.0), closing_over(2.0)),
    "constants": (lambda: 1.0, lambda: 2.0),
    "operations": (lambda x: x + 1.0, lambda x: x * 1.0),
    "defaults": (lambda x=1.0: x, lambda x=2.0: x),
    "nested functions": (lambda: lambda: 1.0, lambda: lambda: 2.0),
    "bound arguments": (partial(torch.add, 1), partial(torch.add, 2)),
    "attributes": (Slotted(1.0), Slotted(2.0)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_contents_have_different_digests(name: str) -> None:
    first, second = DIFFERENT[name]
    assert digest(first) != digest(second)


SCALE = torch.tensor(1.0)


def scaled(x: Tensor) -> Tensor:
    return x * SCALE


def scaled_inside(x: Tensor) -> list[Tensor]:
    return [each * SCALE for each in x]


@pytest.mark.parametrize("function", [scaled, scaled_inside])
def test_globals_that_a_function_names_are_part_of_it(
    function: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(function)
    monkeypatch.setitem(globals(), "SCALE", torch.tensor(2.0))
    assert digest(function) != before


def test_a_number_of_a_matrix_is_like_one_alone() -> None:
    """Its stride is that of the matrix, though it is contiguous."""
    part = torch.arange(32.0, dtype=torch.float64)[::16][:1]
    assert part.is_contiguous()
    assert part.stride() == (16,)
    assert digest(part) == digest(torch.zeros(1, dtype=torch.float64))


def test_private_attributes_and_cycles_do_not_matter() -> None:
    first, second = Slotted(1.0), Slotted(1.0, cache=[1])
    assert digest(first) == digest(second)
    loop: list[object] = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)


def test_our_own_classes_may_move_between_files(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(ELBO(3))
    monkeypatch.setattr(ELBO, "__module__", "ppl_dgm.objectives.elsewhere")
    assert digest(ELBO(3)) == before


def test_differences_are_named() -> None:
    x = torch.zeros(3)
    saved = identify({"seed": 1, "x": x, "gone": 0})
    mine = identify({"seed": 2, "x": x + 1, "new": 0})
    assert difference(saved, mine) == (
        "seed is 2, not 1; x differs; new is only in this computation; gone is only in the file"
    )
    assert not difference(saved, identify({"seed": 1, "x": x.clone(), "gone": 0}))
    assert difference(None, mine) == "the file names no computation"
