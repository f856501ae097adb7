"""Thousands of compiled fits in one process; files of compiled code, shared or damaged."""

import gc
import linecache
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.fx import graph_module

from ppl_dgm import Program, fit
from ppl_dgm.compile.inductor import backend

SLOW = pytest.mark.slow
MEGABYTES = 2**20 / os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 256


def resident() -> float:
    """Memory of this process in megabytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) / MEGABYTES


def located(x: torch.Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def compiled_fit(size: int, seed: int) -> None:
    """Fit a new program by compiled steps."""
    fit(Program(located), torch.randn(size), steps=1, progress=False, compile=True, seed=seed)


def alive() -> Counter[str]:
    """What a fit makes and must not leave behind."""
    gc.collect()
    kinds = Counter(type(thing).__name__ for thing in gc.get_objects())
    sources = len(graph_module._loader.eval_cache), len(linecache.cache)
    kept = ("Adam", "GraphModule", "Graph", "Parameter", "Program", "Tensor", "partial", "function")
    return Counter({kind: kinds[kind] for kind in kept} | {"sources": sources[0] + sources[1]})


def test_compiled_fits_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """New programs of the same code share compiled steps; graphs stand in for machine code."""
    compiler = SimpleNamespace(machine_code=lambda graph, flat: graph)
    monkeypatch.setitem(sys.modules, "ppl_dgm.compile.inductor.machine_code", compiler)
    monkeypatch.setattr(backend, "_COMPILED", {})
    compiled_fit(3, seed=0)
    compiled_fit(3, seed=1)
    before = alive()
    for seed in range(3):
        compiled_fit(3, seed)
    assert alive() - before == Counter()
    assert len(backend._COMPILED) == 1


@SLOW
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
@pytest.mark.parametrize("num_fits", [400, 10_000])
def test_compiled_fits_keep_memory_and_cache_bounded(
    num_fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes return, and every fiftieth is new; old code is forgotten."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest keeps records
    monkeypatch.setattr(backend, "_KEPT", 8)
    start = 0.0
    for turn in range(num_fits):
        compiled_fit(10 + turn // 50 if turn % 50 == 0 else 2 + turn % 6, turn)
        if turn == num_fits // 4:
            start = resident()
        assert len(backend._COMPILED) <= 8
    print(
        f"\n{num_fits} compiled fits: {start:.0f} MB after a quarter, {resident():.0f} at the end"
    )
    assert resident() - start < 40 + num_fits // 50


# ---- one folder of compiled code -----------------------------------------------------------------

FITTING = """
import sys
sys.path.insert(0, {folder!r})
import calls, torch
from ppl_dgm import Program, fit
print("begun", flush=True)
found = fit(
    Program(calls.model, calls.guide), calls.X, steps=5, progress=False, compile={compile}, seed=0
)
print("found", found.history["objective"].tolist(), flush=True)
"""


def begin(cache: Path, compile: bool = True) -> subprocess.Popen:
    """Start a process that makes a fit with its compiled code in a folder."""
    code = FITTING.format(folder=str(Path(__file__).parent), compile=compile)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )


def objective(process: subprocess.Popen, remade: bool = True) -> torch.Tensor:
    """The numbers that a process printed, which ended well; with code that was whole."""
    out, told = process.communicate(timeout=900)
    assert "without shortcuts" not in told or not remade
    assert process.returncode == 0
    return torch.tensor(eval(out.partition("found")[2]))


@pytest.mark.slow
def test_a_folder_of_compiled_code_survives_kills_and_damage(tmp_path: Path) -> None:
    """Two processes share it, one is killed while it compiles; then every file is cut short."""
    expected = objective(begin(tmp_path / "none", compile=False))
    first, second = begin(tmp_path / "cache"), begin(tmp_path / "cache")
    assert first.stdout is not None
    first.stdout.readline()
    while not list((tmp_path / "cache").rglob("*.cpp")) and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert torch.allclose(objective(second), expected, rtol=1e-5)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert torch.allclose(objective(begin(tmp_path / "cache"), remade=False), expected, rtol=1e-5)
    assert torch.allclose(objective(begin(tmp_path / "cache")), expected, rtol=1e-5)
