"""What callbacks hear of a fit."""

import csv
import logging
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program, fit
from ppl_dgm.fitting import Callback, CSVLog, Log, TensorBoard

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


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="callbacks holds a function"):
        run(lambda progress: None)


def test_what_a_callback_raises_ends_the_fit():
    class Enough(Callback):
        def on_step(self, progress):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(Enough())


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
