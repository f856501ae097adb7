"""Public calls leave the process as they found it, and give the same again, whatever happens."""

import contextlib
import linecache
import random
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import calls
import pyro
import pytest
import torch
from torch.utils._pytree import tree_leaves

import ppl_dgm
from ppl_dgm import Program, fit, pyro_state

DRAWING = {"sample", "sample_sites", "model"}  # from torch's generator, as they are meant to
QUICK = {
    "AIS",
    "ELBO",
    "Exact",
    "Laplace",
    "fit",
    "fit with a checkpoint",
    "inspect",
    "log_weights",
}
QUICK |= {"model", "posterior", "sample", "save and load", "to_arviz"}
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in calls.CALLS
]


pytestmark = pytest.mark.filterwarnings("ignore")  # draws of few particles have alarms


def outcome(name: str, seed: int = 0) -> list[Any]:
    """The numbers that a call gives."""
    return tree_leaves(calls.CALLS[name](calls.model, seed))


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(first, second, strict=True)
    )


def allowed(name: str) -> set[str]:
    """What a call may change: a plain model draws from the generators that its author uses."""
    if name == "model":
        return {"torch's generator", "numpy's generator", "Python's generator"}
    return {"torch's generator"} if name in DRAWING else set()


@pytest.mark.parametrize("name", NAMES)
def test_a_call_leaves_the_process_as_it_was(name: str) -> None:
    expected = outcome(name)  # a first call imports what it needs
    before = calls.state()
    assert same(outcome(name), expected)
    assert {*calls.changes(before, calls.state())} <= allowed(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("error", "at"),
    [
        (KeyboardInterrupt, 1),
        pytest.param(KeyboardInterrupt, 3, marks=pytest.mark.slow),
        pytest.param(SystemExit, 2, marks=pytest.mark.slow),
        pytest.param(RuntimeError, 1, marks=pytest.mark.slow),
        pytest.param(RuntimeError, 3, marks=pytest.mark.slow),
        pytest.param(MemoryError, 5, marks=pytest.mark.slow),
    ],
)
def test_a_call_that_raises_leaves_the_process_as_it_was(
    name: str, error: type[BaseException], at: int
) -> None:
    """The model raises in its n-th run, inside a handler; the next call gives what it should."""
    expected, before, model, raised = outcome(name), calls.state(), calls.Flaky(at, error), None
    try:
        calls.CALLS[name](model, 0)
    except BaseException as caught:
        raised = caught
    told_something = issubclass(error, Exception) and at > 1  # a trial run may fail
    assert raised or model.runs < at or told_something or "fit" in name
    assert {*calls.changes(before, calls.state())} <= allowed(name)
    assert same(outcome(name), expected)


# ---- interruptions between any two lines ---------------------------------------------------------

OWN = (str(Path(ppl_dgm.__file__).parent), str(Path(pyro.__file__).parent))


NEVER = ("with ", "try:")  # between a block and its exit Python handles no signal


class Interrupting:
    """A trace function that raises at the n-th line of this package or of Pyro.

    Not at the exit of a block, where a trace function can raise and Ctrl-C can't: a lock would stay
    locked.
    """

    files: tuple[str, ...] = OWN

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines, self.where = at, 0, ""

    def is_place(self, frame: FrameType) -> bool:
        return not source(frame).startswith(NEVER)

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if event == "line" and self.is_place(frame):
            self.lines += 1
            if self.lines == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


class InterruptingExits(Interrupting):
    """One that raises as a block of this package is left, before what undoes it."""

    files = (contextlib.__file__,)

    def is_place(self, frame: FrameType) -> bool:
        first = frame.f_lineno == frame.f_code.co_firstlineno + 1
        caller = frame.f_back.f_code.co_filename if frame.f_back else ""
        return first and frame.f_code.co_name == "__exit__" and caller.startswith(OWN)


def source(frame: FrameType) -> str:
    """The line that a frame is at."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()


def run_traced(name: str, tracer: Interrupting) -> BaseException | None:
    """Run a call under a trace function; what it raises."""
    sys.settrace(tracer)
    try:
        calls.CALLS[name](calls.model, 0)
    except BaseException as error:
        return error
    finally:
        sys.settrace(None)
    return None


def interrupt(name: str, times: int, kind: type[Interrupting] = Interrupting) -> None:
    expected, counted = outcome(name), kind()
    run_traced(name, counted)
    places = range(1, counted.lines + 1)
    for line in random.Random(f"{name} {times}").sample(places, min(times, len(places))):
        tracer, before = kind(line), calls.state()
        run_traced(name, tracer)
        left = {*calls.changes(before, calls.state())} - allowed(name)
        assert not left, f"{name} interrupted at {tracer.where} changed {left}"
    assert same(outcome(name), expected)


@pytest.mark.parametrize("name", ["fit", "log_weights", "posterior", "sample"])
def test_interruptions_at_some_lines(name: str) -> None:
    interrupt(name, 4)


@pytest.mark.parametrize("name", ["log_weights", "posterior"])
def test_interruptions_at_some_exits(name: str) -> None:
    """What an interrupted exit leaves to be undone is undone before the call ends, not later."""
    interrupt(name, 6, InterruptingExits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Interrupting, InterruptingExits])
@pytest.mark.parametrize("name", calls.CALLS)
def test_interruptions_at_many_lines(name: str, kind: type[Interrupting]) -> None:
    interrupt(name, 30, kind)


def test_torch_is_imported_whole_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts come late; half imported they would break every later call."""
    done = []

    def interrupted(name: str) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        done.append(name)

    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(pyro_state, "import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(Program(calls.model, calls.guide), calls.X, steps=1, progress=False)
    assert done == ["torch._dynamo"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- threads -------------------------------------------------------------------------------------

UNTHREADED = {"report"}  # Matplotlib is for one thread


def take_turns(names: list[str], num_calls: int) -> None:
    """Four threads, each with its own seed: all numbers right, nothing left."""
    expected = {(name, seed): outcome(name, seed) for name in names for seed in range(4)}
    before, wrong, done = calls.state(), [], []

    def work(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(num_calls):
            name = order.choice(names)
            try:
                right = name in DRAWING or same(outcome(name, seed), expected[name, seed])
            except Exception as error:
                right, name = False, f"{name}: {error}"
            (done if right else wrong).append(name)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * num_calls)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert len(done) == 4 * num_calls
    assert {*calls.changes(before, calls.state())} <= {"torch's generator"}


def test_threads_share_the_process() -> None:
    take_turns(["AIS", "Exact", "fit", "log_weights", "posterior", "save and load"], 3)


@pytest.mark.slow
def test_threads_share_the_process_for_long() -> None:
    take_turns([name for name in calls.CALLS if name not in UNTHREADED], 200)
