"""Compiled training steps against torch's optimisers.

Compared are values, state, checkpoints, schedules, clipping, shapes and modes.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop

from ppl_dgm.compile import CaptureError, TrainStep, compile_loop

OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "adam": partial(Adam, lr=0.03),
    "adam weight decay": partial(Adam, lr=0.03, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-4),
    "adam decoupled": partial(Adam, lr=0.03, weight_decay=0.5, decoupled_weight_decay=True),
    "adam amsgrad": partial(Adam, lr=0.03, amsgrad=True),
    "adam maximize": partial(Adam, lr=0.03, maximize=True),
    "adamw": partial(AdamW, lr=0.03, weight_decay=0.2),
    "adamw amsgrad": partial(AdamW, lr=0.03, amsgrad=True),
    "sgd": partial(SGD, lr=0.05),
    "sgd momentum": partial(SGD, lr=0.02, momentum=0.9),
    "sgd dampened": partial(SGD, lr=0.02, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "sgd nesterov": partial(SGD, lr=0.02, momentum=0.9, nesterov=True),
    "adagrad": partial(Adagrad, lr=0.3),
    "adagrad of all settings": partial(
        Adagrad, lr=0.3, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-4
    ),
    "rmsprop": partial(RMSprop, lr=0.03),
    "rmsprop of all settings": partial(
        RMSprop, lr=0.03, alpha=0.9, eps=1e-4, weight_decay=0.1, momentum=0.8, centered=True
    ),
    "adadelta": partial(Adadelta, lr=1.0),
    "adadelta of all settings": partial(Adadelta, lr=0.7, rho=0.8, eps=1e-4, weight_decay=0.1),
    "adamax": partial(Adamax, lr=0.03),
    "adamax of all settings": partial(Adamax, lr=0.03, betas=(0.8, 0.95), weight_decay=0.1),
}


FUSED = ("adam", "adamw", "sgd")  # of torch, on the processor


class Fit:
    """A least-squares problem with two parameters and one that gets no gradient."""

    def __init__(
        self, make: Callable[..., Optimizer], dtype: torch.dtype = torch.float32, **settings: Any
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(12, 3, generator=generator).to(dtype)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5], dtype=dtype) + 1.0
        self.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros((), dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.parameters = [self.weight, self.shift, self.unused]
        self.optimizer = make(self.parameters)
        self.step = TrainStep(self.loss, self.optimizer, backend="eager", **settings)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ self.weight + self.shift - y) ** 2).mean()

    def compiled(self) -> float:
        return self.step(self.x, self.y).item()

    def eager(self, clip: Callable[[], Any] = lambda: None) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(self.x, self.y)
        loss.backward()
        clip()
        self.optimizer.step()
        return loss.item()

    def assert_like(self, other: "Fit", tolerance: float = 1e-5) -> None:
        for mine, theirs in zip(self.parameters, other.parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
        mine, theirs = self.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
        assert mine.keys() == theirs.keys()
        for name, state in theirs.items():
            assert state.keys() == mine[name].keys()
            torch.testing.assert_close(mine[name], state, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_and_state_are_torchs(name: str) -> None:
    ours, theirs = Fit(OPTIMISERS[name]), Fit(OPTIMISERS[name])
    assert [ours.compiled() for _ in range(6)] == pytest.approx(
        [theirs.eager() for _ in range(6)], rel=1e-5
    )
    ours.assert_like(theirs)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_compiled_and_torchs_steps_alternate(name: str) -> None:
    ours, theirs = Fit(OPTIMISERS[name]), Fit(OPTIMISERS[name])
    kinds = [
        ours.compiled,
        ours.eager,
        ours.compiled,
        lambda: ours.step.eager(ours.x, ours.y).item(),
        ours.eager,
    ]
    assert [make() for make in kinds] == pytest.approx([theirs.eager() for _ in kinds], rel=1e-5)
    ours.assert_like(theirs)


@pytest.mark.parametrize("name", ["adam", "adamw amsgrad", "sgd momentum", "adagrad"])
@pytest.mark.parametrize("direction", ["to compiled", "to eager"])
def test_checkpoints_move_between_eager_and_compiled(name: str, direction: str) -> None:
    first, second, reference = (Fit(OPTIMISERS[name]) for _ in range(3))
    before, after = (
        (first.eager, second.compiled)
        if direction == "to compiled"
        else (first.compiled, second.eager)
    )
    for _ in range(3):
        before()
    after()  # a step of its own first, so that loading must replace state that is in use
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    with torch.no_grad():
        for mine, saved in zip(second.parameters, first.parameters, strict=True):
            mine.copy_(saved)
    for _ in range(3):
        after()
    for _ in range(6):
        reference.eager()
    second.assert_like(reference)


def test_checkpoints_may_rearrange_who_has_made_how_many_steps() -> None:
    ours, theirs = Fit(OPTIMISERS["adam"]), Fit(OPTIMISERS["adam"])
    for fit, step in ((ours, ours.compiled), (theirs, theirs.eager)):
        for forgotten in (
            [],
            [1],
        ):  # the shift has then made no step, as the parameter that gets no gradient
            for _ in range(2):
                step()
            saved = copy.deepcopy(fit.optimizer.state_dict())
            saved["state"] = {
                name: state for name, state in saved["state"].items() if name not in forgotten
            }
            fit.optimizer.load_state_dict(saved)
            step()
    ours.assert_like(theirs)


def test_double_precision() -> None:
    ours, theirs = Fit(OPTIMISERS["adam"], torch.float64), Fit(OPTIMISERS["adam"], torch.float64)
    for _ in range(5):
        ours.compiled()
        theirs.eager()
    ours.assert_like(theirs, 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in OPTIMISERS if name.split()[0] in FUSED])
def test_half_precision_rounds_what_is_kept_and_not_the_rates(
    name: str, dtype: torch.dtype
) -> None:
    """Against torch's fused kernels, which compute in single precision too."""
    make = OPTIMISERS[name]
    ours, theirs = Fit(make, dtype), Fit(partial(make, fused=True), dtype)
    for _ in range(6):
        ours.compiled()
        theirs.eager()
    ours.assert_like(theirs, 4 * torch.finfo(dtype).eps)


def test_groups_have_their_own_settings() -> None:
    def make(parameters: list[Tensor]) -> Optimizer:
        return Adam(
            [
                {"params": parameters[:1], "lr": 0.1},
                {"params": parameters[1:], "betas": (0.5, 0.9)},
            ],
            lr=0.01,
        )

    ours, theirs = Fit(make), Fit(make)
    for _ in range(4):
        ours.compiled()
        theirs.eager()
    ours.assert_like(theirs)


def test_schedules_are_torchs() -> None:
    ours, theirs = Fit(OPTIMISERS["adam"]), Fit(OPTIMISERS["adam"])
    schedules = [
        torch.optim.lr_scheduler.ExponentialLR(fit.optimizer, 0.5) for fit in (ours, theirs)
    ]
    for _ in range(5):
        ours.compiled()
        theirs.eager()
        for schedule in schedules:
            schedule.step()
    ours.assert_like(theirs)


HYPERPARAMETERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "adam's decay": ("adam", [{"weight_decay": 0.0}, {"weight_decay": 0.3}, {"weight_decay": 0.9}]),
    "adamw's decay": (
        "adamw",
        [{"weight_decay": 0.5}, {"weight_decay": 0.9}, {"weight_decay": 0.0}],
    ),
    "adam's decay decoupled": ("adam weight decay", [{}, {"decoupled_weight_decay": True}]),
    "adam's other numbers": ("adam", [{"eps": 0.1}, {"eps": 1.0, "betas": (0.5, 0.7)}]),
    "adam's direction": ("adam", [{"maximize": True}, {"maximize": False}]),
    "amsgrad switched off": ("adam amsgrad", [{}, {"amsgrad": False}]),
    "sgd's decay": ("sgd", [{"weight_decay": 0.0}, {"weight_decay": 0.3}, {"weight_decay": 0.9}]),
    "sgd's momentum": (
        "sgd",
        [{"momentum": 0.0}, {"momentum": 0.5}, {"momentum": 0.0}, {"momentum": 0.9}],
    ),
    "sgd's dampening": ("sgd momentum", [{"dampening": 0.0}, {"dampening": 0.7}]),
    "sgd's nesterov": (
        "sgd momentum",
        [{"nesterov": True}, {"nesterov": False}, {"nesterov": True}],
    ),
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_schedules_of_other_hyperparameters_are_torchs(name: str) -> None:
    made, settings = HYPERPARAMETERS[name]
    ours, theirs, repeated = (Fit(OPTIMISERS[made]) for _ in range(3))
    for setting in settings:
        for fit in (ours, theirs, repeated):
            fit.optimizer.param_groups[0].update(setting)
        for _ in range(3):
            ours.compiled()
            theirs.eager()
        repeated.step.repeat(3, repeated.x, repeated.y)
    ours.assert_like(theirs)
    repeated.assert_like(theirs)


def test_a_schedule_of_numbers_does_not_capture_again() -> None:
    fit = Fit(OPTIMISERS["adam weight decay"])
    fit.compiled()
    captured = fit.step.prepare(fit.x, fit.y)
    fit.optimizer.param_groups[0].update(weight_decay=0.2, eps=0.1, betas=(0.5, 0.7), lr=0.1)
    fit.compiled()
    assert fit.step.prepare(fit.x, fit.y) is captured


def test_clipping_the_norm_and_the_values() -> None:
    ours, theirs = Fit(OPTIMISERS["sgd"], clip_norm=1.0), Fit(OPTIMISERS["sgd"])
    for _ in range(4):
        ours.compiled()
        theirs.eager(lambda: torch.nn.utils.clip_grad_norm_(theirs.parameters, 1.0))
    ours.assert_like(theirs)
    ours, theirs = Fit(OPTIMISERS["sgd"], clip_value=0.1), Fit(OPTIMISERS["sgd"])
    for _ in range(4):
        ours.compiled()
        theirs.eager(lambda: torch.nn.utils.clip_grad_value_(theirs.parameters, 0.1))
    ours.assert_like(theirs)


@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_bounds_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Fit(OPTIMISERS["sgd"], **{name: 0})


def test_a_guarded_step_moves_nothing_on_nan() -> None:
    fit = Fit(OPTIMISERS["adam"], guard=True)
    fit.compiled()
    before = copy.deepcopy([fit.parameters, fit.optimizer.state_dict()["state"][0]["exp_avg"]])
    assert torch.isnan(fit.step(fit.x, fit.y / 0.0 * 0.0))
    after = [fit.parameters, fit.optimizer.state_dict()["state"][0]["exp_avg"]]
    torch.testing.assert_close(after, before)
    plain = Fit(OPTIMISERS["adam"])
    plain.step(plain.x, plain.y / 0.0 * 0.0)
    assert torch.isnan(plain.weight).all()


def test_a_guard_sees_gradients_too() -> None:
    weight = nn.Parameter(torch.zeros(2))
    step = TrainStep(
        lambda: weight.abs().sqrt().sum(), SGD([weight], lr=0.1), guard=True, backend="eager"
    )
    assert torch.isnan(step())  # the loss is 0, its gradient infinite times zero
    assert (weight == 0).all()


def test_an_odd_last_batch_compiles_again_or_runs_eagerly() -> None:
    fit = Fit(OPTIMISERS["adam"])
    fit.compiled()
    odd = fit.x[:5], fit.y[:5]
    assert fit.step.knows(fit.x, fit.y)
    assert not fit.step.knows(*odd)
    twin = copy.deepcopy([fit.parameters])
    loss = fit.step.eager(*odd)
    with torch.no_grad():
        expected = ((odd[0] @ twin[0][0] + twin[0][1] - odd[1]) ** 2).mean()
    torch.testing.assert_close(loss, expected)
    fit.step(*odd)
    assert fit.step.knows(*odd)


def test_batches_are_told_apart_by_names_and_numbers() -> None:
    weight = nn.Parameter(torch.ones(()))

    def loss(batch: dict[str, Tensor], power: int) -> Tensor:
        return weight * batch.get("x", torch.tensor(0.0)) ** power + batch.get(
            "y", torch.tensor(0.0)
        )

    step = TrainStep(loss, SGD([weight], lr=0.0), backend="eager")
    three = torch.tensor(3.0)
    assert [step({"x": three}, 1), step({"x": three}, 2), step({"y": three}, 2)] == [3.0, 9.0, 3.0]


def test_a_change_of_mode_captures_again() -> None:
    net = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.99))
    x = torch.ones(4, 3)
    step = TrainStep(lambda x: (net(x) ** 2).sum(), SGD(net.parameters(), lr=0.0), backend="eager")
    with torch.no_grad():
        full = (net.eval()(x) ** 2).sum()
    torch.testing.assert_close(step(x), full)
    net.train()
    assert step(x) != full


class Power(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.power, self.runs = 1.0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        return x**self.power


@pytest.mark.parametrize("repeat", [False, True])
def test_settings_that_come_back_are_not_captured_again_and_those_that_keep_changing_are_refused(
    repeat: bool,
) -> None:
    weight, net = nn.Parameter(torch.tensor(2.0)), Power()
    step = TrainStep(lambda: net(weight), SGD([weight], lr=0.0), backend="eager")

    def loss(power: float) -> float:
        net.power = power
        return step.repeat(2)[1].item() if repeat else step().item()

    powers = [1.0, 2.0, 3.0, 4.0]
    assert [loss(power) for power in powers] == [2.0, 4.0, 8.0, 16.0]
    runs = net.runs[0]
    assert [loss(power) for power in reversed(powers)] == [16.0, 8.0, 4.0, 2.0]
    assert net.runs[0] == runs
    with pytest.raises(
        CaptureError, match=r"Power\.power was 1\.0 and is 5\.0.* buffer .* compile=False"
    ):
        loss(5.0)
    assert loss(3.0) == 8.0
    assert net.runs[0] == runs


@pytest.mark.parametrize("name", ["adam", "sgd momentum"])
def test_repeated_steps_are_single_steps(name: str) -> None:
    ours, theirs = Fit(OPTIMISERS[name]), Fit(OPTIMISERS[name])
    losses = ours.step.repeat(70, ours.x, ours.y)
    assert losses.tolist() == pytest.approx([theirs.eager() for _ in range(70)], rel=1e-4, abs=1e-6)
    ours.assert_like(theirs, 1e-4)
    assert ours.compiled() == pytest.approx(theirs.eager(), rel=1e-4)


def test_many_parameters_repeat_without_a_loop() -> None:
    weight = nn.Parameter(torch.ones(5000))
    step = TrainStep(lambda: torch.mean(weight**2), SGD([weight], lr=0.1), backend="eager")
    losses = step.repeat(3)
    assert losses.shape == (3,)
    assert losses[0] == 1.0
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_compiled_guard_sees_what_is_not_finite(bad: float) -> None:
    weight, x = nn.Parameter(torch.ones(20)), torch.ones(20)
    step = TrainStep(
        lambda x: (weight * x).sum(), Adam([weight], lr=0.1), guard=True, clip_norm=1.0
    )
    assert step(x) == 20.0
    before = weight.detach().clone()
    x[3] = bad
    assert torch.isnan(step(x))
    torch.testing.assert_close(weight.detach(), before)


@pytest.mark.slow
def test_compiled_steps_and_loops_are_torchs() -> None:
    fits = [Fit(OPTIMISERS["adam"]) for _ in range(3)]
    fits[0].step = TrainStep(fits[0].loss, fits[0].optimizer)
    fits[1].step = TrainStep(fits[1].loss, fits[1].optimizer)
    for _ in range(5):
        fits[0].compiled()
        fits[2].eager()
    losses = fits[1].step.repeat(5, fits[1].x, fits[1].y)
    fits[0].assert_like(fits[2])
    fits[1].assert_like(fits[2])
    assert losses.shape == (5,)
    assert fits[0].step.seconds >= 0.0


def test_differentiable_optimisers_are_refused() -> None:
    with pytest.raises(CaptureError, match="differentiable=True"):
        Fit(partial(Adam, differentiable=True))


# ---- loops of one's own --------------------------------------------------------------------------


def test_a_loop_is_a_recurrence() -> None:
    def step(state: dict[str, Tensor], x: Tensor, fixed: Tensor) -> tuple[Any, Any]:
        new = {"sum": state["sum"] + x * fixed, "steps": state["steps"] + 1}
        return new, (new["sum"].sum(), new["steps"])

    state = {"sum": torch.zeros(2), "steps": torch.zeros((), dtype=torch.int64)}
    rows, fixed = torch.arange(8.0).reshape(4, 2), torch.tensor(2.0)
    loop = compile_loop(step, state, rows, fixed, backend="eager")
    final, (sums, counts) = loop(state, rows, fixed)
    torch.testing.assert_close(final["sum"], 2 * rows.sum(0))
    torch.testing.assert_close(sums, 2 * rows.sum(1).cumsum(0))
    assert counts.tolist() == [1, 2, 3, 4]
    final, (sums, _) = loop(state, rows, fixed, 2)
    torch.testing.assert_close(final["sum"], 2 * rows[:2].sum(0))
    torch.testing.assert_close(loop(state, rows, fixed, 0)[0]["sum"], torch.zeros(2))
    with pytest.raises(ValueError, match="0 to 4 steps a call, got 5"):
        loop(state, rows, fixed, 5)


def test_a_loop_draws_what_single_steps_draw() -> None:
    def walk(state: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        new = (
            state
            + x * torch.randn(2)
            + torch.rand(2)
            + torch.distributions.Gamma(2.0, 1.0).sample()
        )
        return new, new.sum()

    loop = compile_loop(walk, torch.zeros(2), torch.ones(5))
    torch.manual_seed(1)
    state = torch.zeros(2)
    for _ in range(5):
        state, _ = walk(state, torch.tensor(1.0), ())
    torch.manual_seed(1)
    torch.testing.assert_close(loop(torch.zeros(2), torch.ones(5))[0], state)


def test_a_loop_writes_what_its_steps_write() -> None:
    count = torch.zeros(())

    def step(state: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        count.add_(x)
        return state + count, count.clone()

    loop = compile_loop(step, torch.zeros(()), torch.ones(4), backend="eager")
    assert count == 0
    state, counts = loop(torch.zeros(()), torch.ones(4))
    assert (state, count) == (10.0, 4.0)
    assert counts.tolist() == [1.0, 2.0, 3.0, 4.0]
