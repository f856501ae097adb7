"""What callbacks hear of a fit."""

import csv
import logging
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_dgm import Program, fit
from ppl_dgm.fitting import (
    Callback,
    CheckpointFile,
    CSVLog,
    EarlyStopping,
    Log,
    ProgressBar,
    TensorBoard,
)
from ppl_dgm.fitting.training import Training

X = torch.ones(6)


def program():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    return Program(model)


def run(*callbacks, **settings):
    settings = {"steps": 6, "valid": X, "valid_every": 3, "progress": False} | settings
    return fit(program(), X, callbacks=callbacks, **settings)


def test_callbacks_hear_of_steps_validations_and_the_end():
    heard = []

    class Ear(Callback):
        def on_step(self, progress):
            heard.append(("step", progress.step, progress.objective))

        def on_validation(self, progress):
            heard.append(("valid", progress.step, progress.valid))

        def on_end(self, fit):
            heard.append(("end", fit))

    result = run(Ear(), Callback())
    history = result.history
    assert [one[1:] for one in heard if one[0] == "step"] == list(
        zip(range(1, 7), history["objective"].tolist(), strict=True)
    )
    assert [one[1:] for one in heard if one[0] == "valid"] == list(
        zip([3, 6], history["valid"].tolist(), strict=True)
    )
    assert heard[-1] == ("end", result)


def test_a_callback_ends_the_fit_early_by_returning_true():
    class Until(Callback):
        def on_step(self, progress):
            return progress.step >= 4

    found = run(Until(), valid=None)
    assert (found.stopped, found.steps) == ("early", 4)


def test_callbacks_are_closed_after_errors_too():
    closed = []

    class Door(Callback):
        def on_start(self, progress):
            assert (progress.step, progress.num_steps, progress.objective) == (0, 6, None)

        def on_step(self, progress):
            raise RuntimeError("enough")

        def on_close(self):
            closed.append(self)

    with pytest.raises(RuntimeError, match="enough"):
        run(Door(), Door())
    assert len(closed) == 2


def test_the_bar_and_the_file_are_callbacks_as_others(tmp_path, capsys):
    """`progress` and `checkpoint` are short for them; a file goes first, wherever it stands."""
    shown = []
    for settings in (
        {"progress": True, "checkpoint": tmp_path / "a.pt"},
        {"callbacks": [ProgressBar(), EarlyStopping(9), CheckpointFile(tmp_path / "b.pt")]},
    ):
        settings = {"steps": 6, "valid": X, "progress": False} | settings
        fit(program(), X, **settings)
        fit(program(), X, **(settings | {"steps": 9}))
        shown.append(capsys.readouterr().err)
    for told in shown:
        assert "6/6" in told
        assert "9/9" in told
        assert "best at" in told
        assert " 7/9 [" not in told.split("6/6")[0]
    states = [torch.load(tmp_path / name, weights_only=True)["state"] for name in ("a.pt", "b.pt")]
    assert states[0]["objective"] == states[1]["objective"]


def test_nothing_is_printed_without_progress(capsys):
    class Rendered(nn.Module):
        def forward(self, x):
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0 + 0 * loc.item()), obs=x)

    found = fit(Program(Rendered()), X, steps=40, progress=False, compile="auto")
    assert found.steps == 40
    assert "".join(capsys.readouterr()) == ""


def test_csv_has_the_history(tmp_path):
    result = run(CSVLog(tmp_path / "log.csv", every=2))
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [(int(row["step"]), float(row["objective"])) for row in rows if row["objective"]]
    assert steps == [(i, result.history["objective"][i - 1].item()) for i in (2, 4, 6)]
    assert [float(row["valid"]) for row in rows if row["valid"]] == result.history["valid"].tolist()


def test_loggers_hear(caplog):
    with caplog.at_level(logging.INFO, "ppl_dgm.fit"):
        run(Log(every=3))
    messages = [record.getMessage() for record in caplog.records]
    assert sum("validation" in message for message in messages) == 2
    assert sum(message.startswith("step") for message in messages) == 4
    assert messages[-1].startswith("Fit(6 steps")


def test_tensorboard_is_written_or_missed_by_name(tmp_path):
    try:
        board = TensorBoard(tmp_path)
    except ImportError as error:
        assert "tensorboard" in str(error)  # noqa: PT017 - an optional package
        pytest.skip("tensorboard is not installed")
    run(board)
    assert any(path.name.startswith("events") for path in tmp_path.iterdir())


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_rhythms_are_numbers_of_steps(every, tmp_path):
    """0 would be every step, and 2.5 every fifth."""
    if isinstance(every, int):
        for make in (partial(CSVLog, tmp_path / "log.csv"), Log):
            with pytest.raises(ValueError, match="every is"):
                make(every=every)
    with pytest.raises(ValueError, match="every of the callback Odd is"):
        run(type("Odd", (Callback,), {"every": every})())


def test_one_bar_is_enough(capsys):
    run(ProgressBar(), progress=True)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("steps", [(6, 3), (3, 6)])
def test_a_fit_goes_on_from_the_furthest_of_its_files(steps, tmp_path):
    expected, files = run(steps=9).history, [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path, number in zip(files, steps, strict=True):
        run(CheckpointFile(path), steps=number)
    begun = []

    class Start(Callback):
        def on_start(self, progress):
            begun.append(progress.step)

    assert same(run(*map(CheckpointFile, files), Start(), steps=9).history, expected)
    assert begun == [6]
    for path in files:
        assert same(run(CheckpointFile(path), steps=9).history, expected)


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("first", [0, 1])
def test_early_stopping_is_the_same_after_an_interruption(at, first, tmp_path):
    """In either order with the file, which is restored first."""
    away = {"valid": -X, "valid_every": 1, "steps": 20}
    expected = run(EarlyStopping(4), **away)
    assert (expected.stopped, expected.steps) == ("early", 5)
    kept = [EarlyStopping(4), CheckpointFile(tmp_path / "c.pt", every=100)]
    interrupted = run(*kept, raising("on_step", KeyboardInterrupt(), at), **away)
    assert interrupted.stopped == "interrupted"
    for _ in range(2):  # resumed, and resumed where it had stopped
        found = run(kept[first], kept[1 - first], **away)
        assert (found.stopped, found.steps) == ("early", 5)
        assert same(found.history, expected.history)


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="callbacks holds a function"):
        run(lambda progress: None)


def raising(event, error, at=3):
    """A callback that raises at a step, a validation or the end."""

    def fail(self, progress):
        if getattr(progress, "step", at) == at:
            raise error

    return type("Raising", (Callback,), {event: fail})()


EVENTS = ["on_step", "on_validation", "on_end"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("event", EVENTS)
def test_what_a_callback_raises_ends_the_fit_and_loses_nothing(event, tmp_path):
    """The error has the fit, and the checkpoint goes on bit by bit."""
    expected, log = run().history, CSVLog(tmp_path / "log.csv")
    kept = CheckpointFile(tmp_path / "c.pt", every=100)
    with pytest.raises(RuntimeError, match="enough") as caught:
        run(raising(event, RuntimeError("enough")), log, kept)
    steps = 6 if event == "on_end" else 3
    assert caught.value.fit.steps == steps
    assert f"after {steps} steps of a fit" in caught.value.__notes__[0]
    assert torch.equal(caught.value.fit.history["objective"], expected["objective"][:steps])
    assert log._file.closed
    assert same(run(kept).history, expected)


@pytest.mark.parametrize("event", EVENTS)
def test_ctrl_c_of_a_callback_is_that_of_the_fit(event, tmp_path):
    kept = CheckpointFile(tmp_path / "c.pt", every=100)
    found = run(raising(event, KeyboardInterrupt()), kept)
    ending = ("finished", 6) if event == "on_end" else ("interrupted", 3)
    assert (found.stopped, found.steps) == ending
    assert same(run(kept).history, run().history)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_errors_of_validation_lose_nothing(error, tmp_path, monkeypatch):
    kept = CheckpointFile(tmp_path / "c.pt", every=100)
    with monkeypatch.context() as patched, suppress(RuntimeError):
        patched.setattr(Training, "_validate", Mock(side_effect=error))
        assert run(kept).stopped == "interrupted"
    assert same(run(kept).history, run().history)


def test_a_second_ctrl_c_in_a_callback_stops_at_once(tmp_path):
    class Hasty(Callback):
        def on_step(self, progress):
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)

    hasty, kept = Hasty(), CheckpointFile(tmp_path / "c.pt", every=100)
    hasty.times = 2
    found = run(hasty, kept)
    assert (found.stopped, found.steps) == ("interrupted", 1)
    assert not kept.path.exists()
    hasty.times = 1
    found = run(hasty, kept)
    assert (found.stopped, found.steps) == ("interrupted", 1)
    assert kept.path.exists()


def test_ctrl_c_at_the_end_returns_the_fit():
    class Late(Callback):
        def on_end(self, fit):
            signal.raise_signal(signal.SIGINT)

    assert run(Late()).stopped == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full")
def test_a_full_disk_ends_the_file_and_not_the_fit(caplog):
    log = CSVLog("/dev/full")
    assert len(run(log).history["objective"]) == 6
    assert "/dev/full ends here: [Errno 28] No space left" in caplog.text


def test_a_file_is_of_one_fit(tmp_path):
    log = CSVLog(tmp_path / "log.csv")
    run(log)
    with pytest.raises(ValueError, match="has written a fit already; make another"):
        run(log)
