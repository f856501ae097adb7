"""Thousands of compiled fits in one process; files of compiled code, shared or damaged."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import calls
import pytest
import torch

from ppl_dgm import Program, fit
from ppl_dgm.compile.inductor import backend

SLOW = pytest.mark.slow
MEGABYTES = 2**20 / os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 256


def resident() -> float:
    """Memory of this process in megabytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) / MEGABYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
@pytest.mark.parametrize(
    ("num_fits", "num_shapes"),
    [(6, 1), pytest.param(200, 3, marks=SLOW), pytest.param(10_000, 4, marks=SLOW)],
)
def test_compiled_fits_keep_memory_and_cache_bounded(
    num_fits: int, num_shapes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New programs of the same code share their compiled steps; the rest of each fit is freed."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest keeps records
    known, early, start, late = len(backend._COMPILED), num_fits // 2, 0.0, 0.0
    for turn in range(num_fits):
        x = torch.randn(3 + turn % num_shapes, 2)
        program = Program(calls.model, calls.guide)
        found = fit(program, x, steps=2, progress=False, compile=True, seed=turn % 100)
        assert found.compile_seconds > 0
        if turn + 1 == early:
            start = resident()
    late = resident()
    print(f"\n{num_fits} compiled fits: {start:.0f} MB after {early}, {late:.0f} MB at the end")
    assert len(backend._COMPILED) - known <= num_shapes
    assert late - start < 60


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
