"""Many steps of a fit as one compiled call: what is seen from outside is as with single steps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

import ppl_dgm.fitting.stepping as stepping
from ppl_dgm import Fit, NonFiniteError, Program, fit
from ppl_dgm.compile import TrainStep
from ppl_dgm.fitting import Callback, CheckpointFile, EarlyStopping
from ppl_dgm.objectives import ELBO, linear_warmup

X = torch.randn(24, generator=torch.Generator().manual_seed(0)) + 1.0
COVARIATE = torch.linspace(-1, 1, 24)


def model(x: Tensor | None = None, u: Tensor = COVARIATE) -> None:
    """A regression with a latent slope."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(u)):
        pyro.sample("x", dist.Normal(slope * u, noise), obs=x)


def guide(x: Tensor | None = None, u: Tensor = COVARIATE) -> None:
    """A normal posterior of the slope."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))


def sinking(x: Tensor | None = None) -> None:
    """A scale that becomes negative after about fifty steps."""
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", 24 if x is None else len(x)):
        pyro.sample("x", dist.Normal(0.0, scale, validate_args=False), obs=x)


class Calls:
    """How many steps each compiled call made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        make_steps = TrainStep.repeat

        def counted(step: TrainStep, count: int, *batch: Any, **settings: Any) -> Tensor:
            self.counts.append(count)
            return make_steps(step, count, *batch, **settings)

        monkeypatch.setattr(TrainStep, "repeat", counted)
        monkeypatch.setattr(stepping, "TrainStep", partial(TrainStep, backend="eager"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def run(mode: bool, program: Program | None = None, **settings: Any) -> Fit:
    return fit(
        program or Program(model, guide),
        (X, COVARIATE) if program is None else X,
        **{"steps": 60, "progress": False, "optimizer": adam} | settings,
        compile=mode,
    )


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def assert_same(one: Fit, other: Fit) -> None:
    assert one.steps == other.steps
    assert one.history.keys() == other.history.keys()
    for name, values in one.history.items():
        torch.testing.assert_close(values, other.history[name], rtol=1e-4, atol=1e-5)
    ours, theirs = one.program.state_dict(), other.program.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)


SETTINGS: dict[str, dict[str, Any]] = {
    "all data": {},
    "minibatches": {"batch_size": 8},
    "a last minibatch that is smaller": {"batch_size": 7},
    "a schedule": {"batch_size": 8, "schedule": partial(ExponentialLR, gamma=0.9)},
    "validation": {"valid": (X[:6], COVARIATE[:6]), "valid_every": 7},
    "early stopping": {
        "valid": (X[:6], COVARIATE[:6]),
        "valid_every": 3,
        "callbacks": [EarlyStopping(2)],
    },
}
FURTHER: dict[str, dict[str, Any]] = {
    "clipping": {"clip_norm": 0.1},
    "momentum": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)},
}
SLOW = [pytest.param(one, marks=pytest.mark.slow, id=name) for name, one in FURTHER.items()]


@pytest.mark.parametrize(
    "settings", [*(pytest.param(one, id=name) for name, one in SETTINGS.items()), *SLOW]
)
def test_loops_give_what_steps_give(settings: dict[str, Any], calls: Calls) -> None:
    assert_same(run(True, **settings), run(False, **settings))
    assert max(calls.counts) > 1


def test_a_call_ends_where_something_is_to_be_done(calls: Calls, tmp_path: Path) -> None:
    kept = CheckpointFile(tmp_path / "fit", every=15)
    every_30, whenever = Seen(30), Seen(None)
    run(True, valid=(X, COVARIATE), valid_every=20, callbacks=[kept, every_30, whenever])
    assert calls.counts == [14, 5, 10, 10, 5, 15]  # the first step is an eager one
    assert every_30.steps == [30, 60]
    assert whenever.steps == [1, 15, 20, 30, 40, 45, 60]


def test_an_interrupted_fit_goes_on_from_its_file(calls: Calls, tmp_path: Path) -> None:
    keep: dict[str, Any] = {"callbacks": [CheckpointFile(tmp_path / "fit", every=10)]}
    run(True, steps=30, batch_size=8, **keep)
    assert_same(run(True, batch_size=8, **keep), run(False, batch_size=8))


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_fit_stops_at_the_step_that_is_not_finite(batch_size: int | None, calls: Calls) -> None:
    found = []
    for mode in (True, False):
        with pytest.raises(NonFiniteError, match="step") as caught:
            run(mode, Program(sinking), steps=400, batch_size=batch_size, optimizer=sinker)
        found.append((str(caught.value), caught.value.fit))
    (message, ours), (expected, theirs) = found
    assert message[:100] == expected[:100]  # the place, before numbers that are rounded
    assert 1 < ours.steps < 400
    assert_same(ours, theirs)
    assert calls.counts[0] > ours.steps  # the call would have gone on


def sinker(parameters: Any) -> torch.optim.Optimizer:
    """Ascent of the scale against the gradient, so that it sinks."""
    return torch.optim.SGD(parameters, lr=0.004, maximize=True)


class Seen(Callback):
    """The steps that a callback is told of."""

    def __init__(self, every: int | None = 1) -> None:
        self.every, self.steps = every, []

    def on_step(self, progress: Any) -> None:
        self.steps.append(progress.step)


class OwnSchedule:
    """A schedule that may do anything at any step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.99


STEPWISE: dict[str, Callable[[], dict[str, Any]]] = {
    "a callback": lambda: {"callbacks": [Seen()]},
    "an annealed weight": lambda: {"objective": ELBO(kl_weight=linear_warmup(10))},
    "a schedule of the user's": lambda: {"schedule": OwnSchedule},
}


@pytest.mark.parametrize("make", STEPWISE.values(), ids=STEPWISE)
def test_what_acts_at_every_step_has_every_step(
    make: Callable[[], dict[str, Any]], calls: Calls
) -> None:
    settings = make()
    assert_same(run(True, **settings), run(False, **make()))
    assert set(calls.counts) == {1}
    for callback in settings.get("callbacks", ()):
        assert callback.steps == list(range(1, 61))


def test_large_programs_are_stepped_one_by_one(calls: Calls) -> None:
    from ppl_dgm.families import VAE  # noqa: PLC0415

    program = VAE(4, 2, hidden=[100, 100])
    fit(program, torch.zeros(24, 4), steps=5, batch_size=8, compile=True, progress=False)
    assert calls.counts == []
