"""A checkpoint is of one fit; Ctrl-C and full disks lose nothing; threads take turns."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine import runtime
from torch import Tensor, nn

from ppl_dgm import Fit, Program, evidence, fit
from ppl_dgm.fitting import CheckpointFile, EarlyStopping, checkpoint
from ppl_dgm.objectives import ELBO, IWELBO, linear_warmup
from ppl_dgm.program import Bound
from ppl_dgm.sampling import checkpoint as sampling_checkpoint

X = torch.randn(12, generator=torch.Generator().manual_seed(3)) + 2
SGD = partial(torch.optim.SGD, lr=0.1)
halving = partial(torch.optim.lr_scheduler.StepLR, step_size=2)


class Located(nn.Module):
    """x ~ N(loc, scale), the scale a buffer."""

    def __init__(self, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros((), dtype=dtype))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype))

    def forward(self, x: Tensor | None = None, weight: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=1.0):
            loc = self.loc if weight is None else self.loc * weight
            pyro.sample("x", dist.Normal(loc, self.scale), obs=x)


def run(path: Path, model: nn.Module | None = None, **changes: object) -> Fit:
    settings: dict = {
        "data": X,
        "objective": ELBO(),
        "steps": 3,
        "batch_size": 6,
        "optimizer": SGD,
        "schedule": halving,
        "clip_norm": 10.0,
        "valid": X[:4],
        "valid_every": 1,
        "patience": 9,
        "every": 1,
        "progress": False,
        "compile": False,
    }
    settings |= changes
    heard = [CheckpointFile(path, settings.pop("every"))]
    if patience := settings.pop("patience"):
        heard.append(EarlyStopping(patience))
    return fit(Program(model or Located()), callbacks=heard, **settings)


OTHERS: dict[str, tuple[dict, str]] = {
    "data": ({"data": X + 1}, "data: argument 0 differs"),
    "covariates": ({"data": (X, X)}, "data: argument 1 is only in this computation"),
    "validation data": ({"valid": X[1:5]}, "validation data: argument 0 differs"),
    "rhythm of validation": ({"valid_every": 2}, "valid_every is 2, not 1"),
    "patience": ({"patience": 8}, "patience is 8, not 9"),
    "batch size": ({"batch_size": 4}, "batch_size is 4, not 6"),
    "seed": ({"seed": 1}, "seed is 1, not 0"),
    "objective": ({"objective": IWELBO(2)}, "objective: kind is 'IWELBO', not 'ELBO'"),
    "its particles": ({"objective": ELBO(2)}, "objective: num_particles is 2, not 1"),
    "its weight": ({"objective": ELBO(kl_weight=0.5)}, "objective: kl_weight is 0.5, not 1.0"),
    "its warm-up": (
        {"objective": ELBO(kl_weight=linear_warmup(9))},
        "objective: kl_weight differs",
    ),
    "optimiser": ({"optimizer": torch.optim.Adam}, "optimizer is 'Adam', not 'SGD'"),
    "rate": ({"optimizer": partial(torch.optim.SGD, lr=0.2)}, "lr is 0.2, not 0.1"),
    "momentum": ({"optimizer": partial(SGD, momentum=0.9)}, "momentum is 0.9, not 0"),
    "schedule": ({"schedule": None}, "schedule is None, not 'StepLR'"),
    "its steps": ({"schedule": partial(halving, step_size=1)}, "settings of the schedule differs"),
    "clipping": ({"clip_norm": 1.0}, "clip_norm is 1.0, not 10.0"),
    "precision": ({"model": Located(dtype=torch.float64)}, "dtypes"),
    "a buffer": ({"model": Located(scale=2.0)}, "of another program: program: .*scale had other"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_fit_is_refused_and_the_difference_named(tmp_path: Path, name: str) -> None:
    run(tmp_path / "c.pt")
    changes, message = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "c.pt", **changes)


WIDTH = torch.tensor(1.0)
COUNT = 0


def reading(scale: float, start: Tensor) -> Callable[[Tensor], None]:
    """A model of a number and tensors that are no parameters; it counts its runs."""

    def model(x: Tensor) -> None:
        global COUNT  # noqa: PLW0603 - as users do
        COUNT += 1
        loc = pyro.param("loc", start)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, sum(WIDTH * scale for _ in range(2))), obs=x)

    return model


class Widened:
    """An object with a setting, whose method is a model."""

    def __init__(self, scale: float) -> None:
        self.scale, self.last = scale, None

    def model(self, x: Tensor, by: float = 1.0) -> None:
        self.last = reading(self.scale * by, torch.tensor(0.0))(x)


REFERRED: dict[str, tuple[Callable, Callable, str]] = {
    "closure": (
        reading(1.0, torch.tensor(0.0)),
        reading(2.0, torch.tensor(0.0)),
        "model: reading.*: scale is 2.0, not 1.0",
    ),
    "attribute": (Widened(1.0).model, Widened(2.0).model, "Widened.scale is 2.0, not 1.0"),
    "bound argument": (
        partial(Widened(1.0).model, by=1.0),
        partial(Widened(1.0).model, by=3.0),
        "model: partial: by is 3.0, not 1.0",
    ),
}


@pytest.mark.parametrize("name", REFERRED)
def test_what_a_program_refers_to_is_part_of_its_fit(tmp_path: Path, name: str) -> None:
    """Also after runs that have changed counters, records and parameters."""
    first, other, message = REFERRED[name]
    go = partial(fit, data=X, steps=2, progress=False, compile=False, checkpoint=tmp_path / "c.pt")
    program = Program(first)
    go(program)
    assert go(program, steps=3).steps == 3
    with pytest.raises(ValueError, match=message):
        go(Program(other), steps=4)


def test_tensors_of_a_program_s_module_are_part_of_its_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = partial(fit, data=X, progress=False, compile=False, checkpoint=tmp_path / "c.pt")
    program = Program(reading(1.0, torch.tensor(0.0)))
    go(program, steps=2)
    monkeypatch.setitem(globals(), "WIDTH", torch.tensor(2.0))
    with pytest.raises(ValueError, match="WIDTH differs"):
        go(program, steps=3)


def test_more_steps_and_other_rhythms_of_writing_go_on(tmp_path: Path) -> None:
    run(tmp_path / "c.pt")
    longer = run(tmp_path / "c.pt", steps=6, every=2, compile="auto")
    assert longer.steps == 6
    assert torch.equal(
        longer.history["objective"], run(tmp_path / "d.pt", steps=6).history["objective"]
    )


def test_buffers_that_training_moves_are_the_file_s(tmp_path: Path) -> None:
    """The running mean of a batch norm is progress, no other program.

    A fresh one goes on from it.
    """

    class Normed(Located):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1, affine=False)

        def forward(self, x: Tensor | None = None) -> None:
            self.norm(x[:, None])
            super().forward(x)

    run(tmp_path / "c.pt", Normed(), patience=None, valid=None)
    model = Normed()
    run(tmp_path / "c.pt", model, patience=None, valid=None, steps=5)
    assert model.norm.num_batches_tracked == 5


class Killed(ELBO):
    """Sends Ctrl-C to this process in one of its steps."""

    def __init__(self, at: int, times: int = 1) -> None:
        super().__init__()
        self._at, self._times, self._calls = at, times, 0

    def value(self, bound: Bound) -> Tensor:
        self._calls += 1
        if self._calls == self._at:
            for _ in range(self._times):
                os.kill(os.getpid(), signal.SIGINT)
        return super().value(bound)


def test_ctrl_c_ends_after_the_step_and_keeps_it(tmp_path: Path) -> None:
    settings: dict = {"valid": None, "patience": None, "every": 100, "steps": 5}
    whole = run(tmp_path / "whole.pt", **settings)
    objective = Killed(3)
    objective.__class__.__name__ = "ELBO"
    stopped = run(tmp_path / "c.pt", objective=objective, **settings)
    assert (stopped.stopped, stopped.steps) == ("interrupted", 3)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["state"]["step"] == 3
    resumed = run(tmp_path / "c.pt", **settings)
    assert torch.equal(resumed.history["objective"], whole.history["objective"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_in_the_step(tmp_path: Path) -> None:
    settings: dict = {"valid": None, "patience": None}
    stopped = run(tmp_path / "c.pt", objective=Killed(3, times=2), **settings)
    assert (stopped.stopped, stopped.steps) == ("interrupted", 2)


def test_a_full_disk_is_told_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict = {"valid": None, "patience": None}
    run(tmp_path / "c.pt", steps=2, **settings)

    def full(path: Path, state: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    result = run(tmp_path / "c.pt", steps=5, **settings)
    assert result.steps == 5
    assert [note for note in result.notes if "c.pt could not be written" in note]
    assert torch.load(tmp_path / "c.pt", weights_only=True)["state"]["step"] == 2


def test_an_estimate_goes_on_beside_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, state: object) -> None:
        raise OSError(28, "No space left on device")

    estimator = evidence.AIS(num_temperatures=3, num_chains=4, num_pilots=8)
    expected = estimator(Program(latent), X, seed=0).log_z
    monkeypatch.setattr(sampling_checkpoint, "write_state", full)
    estimator = replace(estimator, checkpoint=tmp_path / "c.pt")
    assert torch.equal(estimator(Program(latent), X, seed=0).log_z, expected)
    assert "c.pt could not be written: [Errno 28]" in caplog.text


def test_space_is_looked_for_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    objective = Killed(1)
    with pytest.raises(ValueError, match="c.pt has 7 bytes left, but the file takes about 40"):
        run(tmp_path / "c.pt", objective=objective)
    assert objective._calls == 0
    assert not list(tmp_path.iterdir())


def latent(x: Tensor | None = None) -> None:
    with pyro.plate("data", 1 if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Raising:
    """A program that is interrupted inside a plate and two handlers."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, x: Tensor | None = None) -> None:
        with pyro.poutine.scale(scale=2.0):
            plate = pyro.plate("data", 12)
            plate.__enter__()  # never left: as an interruption inside Pyro's own __exit__ does
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize(
    "call",
    [
        lambda p: evidence.PriorSampling(10)(p, X),
        lambda p: fit(p, X, steps=1, progress=False),
        lambda p: p.sample(2),
        lambda p: p.model(X),
    ],
)
def test_handlers_are_left_as_they_were(call: Callable, error: type[BaseException]) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever it becomes
        call(Program(Raising(error)))
    assert not runtime._PYRO_STACK
    assert not runtime._DIM_ALLOCATOR._stack
    assert not pyro.get_param_store().keys()
    assert evidence.PriorSampling(10)(Program(latent), X).log_z.shape == (12,)


def test_threads_take_turns() -> None:
    """Four threads, each with its own program.

    The numbers of one thread, and nothing left behind.
    """

    def work(seed: int) -> list[Tensor]:
        program = Program(latent)
        estimate = evidence.ImportanceSampling(20)(program, X[: 4 + seed], seed=seed).log_z
        fitted = fit(
            Program(Located()), X + seed, steps=4, seed=seed, progress=False, compile=False
        )
        return [estimate, fitted.history["objective"]]

    found: dict[int, list[list[Tensor]]] = {seed: [] for seed in range(4)}

    def repeat(seed: int) -> None:
        found[seed] += [work(seed) for _ in range(3)]

    threads = [Thread(target=repeat, args=(seed,)) for seed in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, results in found.items():
        expected = work(seed)
        assert len(results) == 3, f"thread {seed} failed"
        for result in results:
            assert all(map(torch.equal, result, expected))
    assert not pyro.get_param_store().keys()
