"""Computations killed at random moments go on from their files, bit by bit the same."""

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import calls
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program, evidence, fit
from ppl_dgm.fitting import CheckpointFile
from ppl_dgm.program.storage import read_state
from ppl_dgm.sampling import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # few particles have alarms
Work = Callable[[Path], list[Tensor]]


def fitted(path: Path) -> list[Tensor]:
    """A fit by minibatches that writes after every step."""
    program = Program(calls.model, calls.guide)
    settings = {"batch_size": 2, "valid": calls.X, "valid_every": 4}
    settings |= {"progress": False, "compile": False}
    found = fit(program, calls.X, steps=60, callbacks=[CheckpointFile(path, every=1)], **settings)
    return [found.history["objective"], found.history["valid"], *program.state_dict().values()]


def annealed(path: Path) -> list[Tensor]:
    """Annealed importance sampling that writes after every move."""
    estimator = evidence.AIS(30, num_chains=4, num_pilots=8, checkpoint=path)
    found = estimator(Program(calls.model), calls.X, seed=5)
    return [found.log_z, found.std_error]


def filtered(path: Path) -> list[Tensor]:
    """Sequential Monte Carlo that writes after every generation."""
    estimator = evidence.SMC(num_particles=40, num_groups=2, checkpoint=path)
    found = estimator(Program(calls.model), calls.X, seed=5)
    return [found.log_z, found.std_error]


WORKS: dict[str, Work] = {"fit": fitted, "AIS": annealed, "SMC": filtered}


def start(work: Work, path: Path) -> int:
    """Start work in a copy of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside idle threads
        process = os.fork()
    if process == 0:
        try:
            work(path)
        finally:
            os._exit(0)
    return process


def duration(work: Work, path: Path) -> float:
    begun = time.monotonic()
    os.waitpid(start(work, path), 0)
    path.unlink()
    return time.monotonic() - begun


def survive(name: str, num_kills: int, folder: Path) -> int:
    """Kill work again and again until so many kills have hit; the hits that found a file."""
    work, path, order = WORKS[name], folder / "progress.pt", random.Random(name)
    expected = work(folder / "whole.pt")
    seconds, hits, begun = duration(work, path), 0, 0
    for _ in range(num_kills):
        process = start(work, path)
        time.sleep(order.uniform(0.0, 0.8 * seconds))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        hits += os.WIFSIGNALED(status)
        if path.exists():
            begun += 1
            read_state(path, None)  # never half a file
        if begun % 4 == 3 or not os.WIFSIGNALED(status):  # to its end, and from the start again
            assert all(map(torch.equal, work(path), expected))
            assert [other.name for other in folder.iterdir() if other.name[0] == "."] == []
            path.unlink()
            begun += 1
    assert all(map(torch.equal, work(path), expected))
    return hits


@pytest.fixture(autouse=True)
def written_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)


@pytest.mark.parametrize("name", WORKS)
def test_killed_a_few_times(name: str, tmp_path: Path) -> None:
    survive(name, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_killed_many_times(name: str, tmp_path: Path) -> None:
    hits = survive(name, 100, tmp_path)
    print(f"\n{name}: {hits} of 100 kills hit")
    assert hits >= 20  # as fast as the machine is at the time


# ---- files ---------------------------------------------------------------------------------------


def damaged(content: bytes, order: random.Random) -> bytes:
    """A file cut short, with bytes changed, doubled, or another one."""
    place = order.randrange(len(content))
    bit = bytes([content[place] ^ (1 << order.randrange(8))])
    kinds = [
        content[:place],
        content[:place] + bit + content[place + 1 :],
        content[place:],
        content + content,
        order.randbytes(100),
        b"",
    ]
    return order.choice(kinds)


@pytest.mark.parametrize("times", [40, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["checkpoint of a fit", "Program.save", "Fit.save", "AIS"])
def test_damaged_files_are_named_or_read_as_they_were(
    kind: str, times: int, tmp_path: Path
) -> None:
    """Each damaged file gives what was written, or a ValueError with its name: nothing else."""
    path, order = tmp_path / "file", random.Random(kind)
    program = Program(calls.model, calls.guide)
    quick = {"steps": 2, "progress": False, "compile": False}
    found = fit(program, calls.X, **quick)
    kept = program.state_dict().__class__(
        (name, value.clone()) for name, value in program.state_dict().items()
    )
    writes = {
        "checkpoint of a fit": lambda: fitted(path),
        "Program.save": lambda: program.save(path),
        "Fit.save": lambda: found.save(path),
        "AIS": lambda: annealed(path),
    }
    writes[kind]()
    content, refused = path.read_bytes(), 0
    whole = read_state(path, None) if kind in ("AIS", "checkpoint of a fit") else kept
    for _ in range(times):
        path.write_bytes(damaged(content, order))
        message = ""
        try:
            state = program.load(path).state_dict() if whole is kept else read_state(path, None)
            assert str(state) == str(whole)
        except ValueError as error:
            refused, message = refused + 1, str(error)
        assert not message or str(path) in message
    assert refused >= 0.6 * times
