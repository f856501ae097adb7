"""What was baked in at capture is never used when it has changed.

Captured anew, refused, or an error.
"""

import random
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_dgm.compile import CaptureError, Switch, TrainStep, capture, compile_function

X = torch.arange(6.0).reshape(2, 3)


class Scale(nn.Module):
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.power = 1.0
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.rows = len(x)
        return (self.weight * x) ** self.power + self.shift


def set_number(module: Any) -> None:
    module.power = 2.0


def replace_parameter(module: Any) -> None:
    module.weight = nn.Parameter(torch.zeros(3))


def replace_buffer(module: Any) -> None:
    module.shift = torch.zeros(3)


CHANGES = [set_number, replace_parameter, replace_buffer]


@pytest.mark.parametrize("change", CHANGES, ids=lambda fn: fn.__name__)
def test_a_switch_follows_modules_that_are_set_differently(change: Callable[[Any], None]) -> None:
    scale, switch = Scale(), Switch(True, backend="eager")
    switch(scale, X)
    change(scale)
    torch.testing.assert_close(switch(scale, X), scale(X).detach())


@pytest.mark.parametrize("change", CHANGES, ids=lambda fn: fn.__name__)
def test_a_compiled_function_refuses_modules_that_are_set_differently(
    change: Callable[[Any], None],
) -> None:
    scale = Scale()
    compiled = compile_function(scale, (X,), backend="eager")
    compiled(X)
    change(scale)
    with pytest.raises(ValueError, match=r"Scale\.(power|weight|shift) .* Capture again"):
        compiled(X)


def test_what_a_module_notes_for_itself_is_no_setting() -> None:
    scale = Scale()
    compiled = compile_function(scale, (X,), backend="eager")
    scale(X[:1])
    assert scale.rows == 1
    torch.testing.assert_close(compiled(X), scale(X).detach())


def test_a_module_of_another_type() -> None:
    layer, switch = nn.Linear(3, 3), Switch(True, backend="eager")
    switch(lambda_of(layer), X)
    layer.double()
    torch.testing.assert_close(switch(lambda_of(layer), X), layer(X.double()).detach())


def lambda_of(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return _OF.setdefault(layer, lambda x: layer(x.to(layer.weight.dtype)))


_OF: dict[nn.Linear, Callable[[Tensor], Tensor]] = {}
COUNTS, NUMPY, PYTHON = count(), np.random.default_rng(0), random.Random(0)


def counts(x: Tensor) -> Tensor:
    return x * next(COUNTS)


def draws_by_numpy(x: Tensor) -> Tensor:
    return x + torch.as_tensor(NUMPY.normal(size=3))


def draws_by_python(x: Tensor) -> Tensor:
    return pyro.sample("z", dist.Normal(PYTHON.random(), 1.0)) + x


def draws_in_a_longer_first_run(x: Tensor) -> Tensor:
    if not FIRST:
        FIRST.append(len(x.abs().exp() * 3.0))
    return x.exp() * PYTHON.random()


FIRST: list[int] = []
NUMPYS: Any = np.random.mtrand._rand  # type: ignore[attr-defined]
NUMBERS = [counts, draws_by_numpy, draws_by_python, draws_in_a_longer_first_run]


@pytest.mark.parametrize("fn", NUMBERS, ids=lambda fn: fn.__name__)
def test_numbers_that_python_draws_or_counts_are_refused(fn: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(
        CaptureError, match=r"a number that changes from run to run .*test_staleness\.py:\d+"
    ):
        capture(fn, (X,))


def test_a_first_run_that_does_more_is_no_change() -> None:
    runs = count()

    def fn(x: Tensor) -> Tensor:
        return x * 2.0 + (x * 3.0 if next(runs) == 0 else 0 * x)

    def prepared(x: Tensor) -> Tensor:
        return x * 2.0 if next(runs) else (x * 3.0).exp() * 2.0

    with pytest.raises(CaptureError, match="mul: 0"):
        capture(fn, (X,))
    runs = count()
    torch.testing.assert_close(capture(prepared, (X,))(X), 2.0 * X)


def decides_by_python(x: Tensor) -> Tensor:
    return x if random.random() < 2.0 else -x


def decides_by_numpy(x: Tensor) -> Tensor:
    return x if NUMPYS.rand() < 2.0 else -x


@pytest.mark.parametrize(
    ("fn", "name"), [(decides_by_python, "random"), (decides_by_numpy, r"numpy\.random")]
)
def test_draws_of_other_generators_are_refused_and_taken_back(
    fn: Callable[[Tensor], Tensor], name: str
) -> None:
    before = random.getstate(), NUMPYS.get_state()[2]
    with pytest.raises(CaptureError, match=f"draws from {name}, .* draw with torch"):
        capture(fn, (X,))
    assert (random.getstate(), NUMPYS.get_state()[2]) == before


class Keeper(nn.Module):
    """A module that keeps something of every run in an attribute."""

    def __init__(self, kept: Any, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.kept, self.step = nn.Linear(3, 3), kept, step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, self.layer(x))


def counts_up(module: Any, h: Tensor) -> Tensor:
    module.kept += 1
    return h if module.kept < 100 else -h


def cools(module: Any, h: Tensor) -> Tensor:
    module.kept *= 0.9
    return h * module.kept


def starts(module: Any, h: Tensor) -> Tensor:
    if not module.kept:
        module.kept = True
        return -h
    return h


def hands_on(module: Any, h: Tensor) -> Tensor:
    if module.kept is not None:
        h = h + module.kept
    module.kept = h.detach()
    return h


def notes(module: Any, h: Tensor) -> Tensor:
    module.kept = h
    module.pair = (h, {"posterior": dist.Normal(h, 1.0)})
    return h


REFUSED = [
    (0, counts_up, r"\(Keeper.kept: 1, then 2\). .* in a buffer"),
    (1.0, cools, "changes .* in a buffer"),
    (False, starts, r"\(Keeper.kept: False, then True\). Run the program once"),
    (None, hands_on, r"\(Keeper.kept\) at .*test_staleness\.py:\d+ .*`copy_`"),
    (torch.ones(3), hands_on, r"\(Keeper.kept\) at .*test_staleness\.py:\d+ .*`copy_`"),
]


@pytest.mark.parametrize(("kept", "step", "said"), REFUSED)
def test_state_that_modules_keep_in_python_is_refused_and_taken_back(
    kept: Any, step: Any, said: str
) -> None:
    module = Keeper(kept, step)
    with pytest.raises(CaptureError, match=said):
        capture(module, (X,))
    assert module.kept is kept or module.kept == kept


@pytest.mark.parametrize("kept", [None, X])
def test_modules_get_back_the_tensors_they_kept(kept: Tensor | None) -> None:
    module = Keeper(kept, notes)
    captured = capture(module, (X,))
    assert module.kept is kept
    assert not hasattr(module, "pair")
    torch.testing.assert_close(captured(X), module(X).detach())
    assert captured.is_current()


def lists(module: Any, h: Tensor) -> Tensor:
    module.kept.append(h)
    return h


def caches(module: Any, h: Tensor) -> Tensor:
    return h * module.kept.setdefault(len(h), torch.arange(3.0))


def test_modules_get_back_their_lists_and_caches() -> None:
    module = Keeper([X], lists)
    capture(module, (X,))
    assert len(module.kept) == 1
    module = Keeper({}, caches)
    with pytest.raises(CaptureError, match="running the program once"):
        capture(module, (X,))
    assert module.kept == {}
    module(X)
    torch.testing.assert_close(capture(module, (X,))(X), module(X).detach())


def test_functional_calls_lend_buffers() -> None:
    layer, lent = nn.BatchNorm1d(3).eval(), {"running_mean": X[0]}
    kept = layer.running_mean
    captured = capture(lambda x: torch.func.functional_call(layer, lent, (x,)), (X,))
    torch.testing.assert_close(captured(X), torch.func.functional_call(layer, lent, (X,)).detach())
    assert layer.running_mean is kept


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_layers_that_keep_their_own_weight(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = wrap(nn.Linear(3, 3)).eval()
    torch.testing.assert_close(capture(layer, (X,))(X), layer(X).detach())
    assert layer.weight.shape == (3, 3)


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers(cell: Callable[..., nn.Module]) -> None:
    layer = cell(3, 2)
    torch.testing.assert_close(capture(lambda x: layer(x)[0], (X,))(X), layer(X)[0].detach())


@pytest.mark.parametrize(
    "other", [X.T.contiguous().T, X[:1].expand(2, 3), torch.ones(2, 6)[:, ::2]]
)
@pytest.mark.parametrize("first", [X, X[:, :1].expand(2, 3)])
def test_inputs_may_lie_otherwise_in_memory(first: Tensor, other: Tensor) -> None:
    compiled = compile_function(
        lambda x: x.reshape(-1) * torch.arange(6.0), (first,), backend="eager"
    )
    torch.testing.assert_close(compiled(other), other.reshape(-1) * torch.arange(6.0))


@pytest.mark.slow
def test_machine_code_is_told_how_inputs_lie_in_memory() -> None:
    switch, weight = Switch(True), nn.Parameter(torch.zeros(3))
    step = TrainStep(lambda x: (x @ weight - 1.0).square().sum(), torch.optim.SGD([weight], lr=0.1))
    for x in (X, X.T.contiguous().T, X[:1].expand(2, 3)):
        torch.testing.assert_close(switch(weighted, x), weighted(x))
        with torch.no_grad():
            weight.zero_()
        step(x)
        torch.testing.assert_close(weight.detach(), 0.2 * x.sum(0))


def weighted(x: Tensor) -> Tensor:
    return (x * torch.arange(6.0).reshape(2, 3)).sum(-1)


def test_inputs_of_another_kind_are_an_error() -> None:
    compiled = compile_function(
        lambda x, power: x["a"] ** power / x["b"], ({"a": X, "b": X + 1}, 2), backend="eager"
    )
    with pytest.raises(
        ValueError,
        match=r"expected a tensor \[2, 3\] of torch.float32 .* got \[2, 3\] of torch.float64",
    ):
        compiled({"a": X, "b": X.double()}, 2)
    with pytest.raises(ValueError, match=r"got \[1, 3\]"):
        compiled({"a": X[:1], "b": X}, 2)
    with pytest.raises(ValueError, match="nested like the examples"):
        compiled({"b": X + 1, "a": X}, 2)
    with pytest.raises(ValueError, match="nested like the examples"):
        compiled({"a": X, "b": X + 1}, 3)


def test_a_switch_tells_leaves_apart_by_type_and_default_type() -> None:
    switch, whole = Switch(True, backend="eager"), torch.tensor([1, 2])
    assert switch(torch.mul, whole, 1).dtype == torch.int64
    assert switch(torch.mul, whole, 1.0).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert switch(torch.mul, whole, 1.0).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_arrays_that_come_and_go_are_told_apart() -> None:
    switch = Switch(True, backend="eager")
    for value in range(8):
        array = np.full(3, float(value))
        torch.testing.assert_close(switch(scaled, X, array), X.double() * value)


def scaled(x: Tensor, array: np.ndarray) -> Tensor:
    return x * torch.as_tensor(array)


def trained(make: Callable[..., Any], **options: Any) -> list[Tensor]:
    """Three steps with parameters frozen by turns.

    The second is frozen in the first step, none in the second, the first in the third.
    """
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([one], lr=0.1)
    step = make(lambda x: (one * x + two**2).square().sum(), optimizer, **options)
    step(X)
    optimizer.add_param_group({"params": [two], "lr": 0.2})
    step(X)
    one.requires_grad_(False)
    step(X)
    one.requires_grad_(True)
    step(X)
    return [one.detach(), two.detach()]


def plain_step(
    loss: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[Tensor], None]:
    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def test_parameters_are_frozen_thawed_and_added_between_steps() -> None:
    torch.testing.assert_close(trained(TrainStep, backend="eager"), trained(plain_step))
