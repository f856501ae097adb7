"""What may be given instead of the plainest argument of a kind."""

import inspect
import pickle
from collections import OrderedDict, UserList, deque
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, StrEnum
from fractions import Fraction
from functools import partial
from os import PathLike
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_dgm import evidence, fit
from ppl_dgm.checked import checked


class Three(IntEnum):
    THREE = 3


class Mode(StrEnum):
    AUTO = "auto"


class Text(str):
    __slots__ = ()


@checked
def whole(value: int) -> Any:
    return value


@checked
def number(value: float) -> Any:
    return value


@checked
def switched(value: Literal["auto"] | bool) -> Any:
    return value


@checked
def named(value: str | PathLike | None) -> Any:
    return value


@checked
def sized(value: Sequence[int]) -> Any:
    return value


@checked
def ordered(value: Sequence[int | Sequence[int]] | None) -> Any:
    return value


@checked
def mapped(value: Mapping[str, int]) -> Any:
    return value


@checked
def called(value: Callable[[int], int]) -> Any:
    return value


@checked
def either(value: Tensor | float) -> Any:
    return value


@checked
def sown(seed: int | None) -> Any:
    return seed


THREES = [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.Size([3])[0], Three.THREE]
TAKEN: list[tuple[Callable, Any, Any]] = [
    *((function, three, 3) for function in (whole, sown) for three in THREES),
    *((number, half, 0.5) for half in (np.float32(0.5), np.array(0.5), Fraction(1, 2))),
    (number, torch.tensor(0.5), torch.tensor(0.5)),  # it may be learned
    *((switched, text, "auto") for text in (np.str_("auto"), Text("auto"), Mode.AUTO)),
    (switched, np.bool_(False), False),
    *((named, path, path) for path in (Path("a"), PurePath("a"), Text("a"), None)),
    *((sized, kind([1, 2]), [1, 2]) for kind in (list, tuple, torch.Size, deque, UserList)),
    *((sized, kind([1, 2]), [1, 2]) for kind in (np.array, torch.tensor)),
    *((ordered, kind([1, 2]), [1, 2]) for kind in (list, np.array, torch.tensor)),
    *((mapped, kind({"a": 1}), {"a": 1}) for kind in (dict, OrderedDict, MappingProxyType)),
    *((called, function, function) for function in (partial(pow, 2), abs, Three, [].append)),
    (either, torch.tensor(3), torch.tensor(3)),
]


@pytest.mark.parametrize(("function", "given", "meant"), TAKEN)
def test_what_means_the_same_is_taken(function: Callable, given: Any, meant: Any) -> None:
    found = function(given)
    assert found == meant or list(found) == list(meant)
    assert not isinstance(found, (np.generic, np.ndarray))


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor([1.0]), [torch.tensor(1.0)]])
def test_what_is_no_order_is_not(value: Any) -> None:
    with pytest.raises(TypeError, match="value (is|holds) .*; expected a collection, each a whole"):
        ordered(value)


@pytest.mark.parametrize("value", [torch.tensor(3.0), torch.tensor([3]), np.float64(3.0), True])
def test_what_is_no_whole_number_is_not(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="value is .*; expected a whole number"):
        whole(value)


@pytest.mark.parametrize("value", [1, 0, np.int64(1), "Auto"])
def test_numbers_are_no_switches(value: Any) -> None:
    with pytest.raises(ValueError, match="expected 'auto', True or False"):
        switched(value)


def test_a_checked_function_is_itself_to_pickle_and_inspect() -> None:
    assert pickle.loads(pickle.dumps(fit)) is fit
    assert [*inspect.signature(fit).parameters][:3] == ["program", "data", "objective"]
    estimator = evidence.AIS(num_chains=np.int64(4))
    assert pickle.loads(pickle.dumps(estimator)) == estimator == evidence.AIS(num_chains=4)
