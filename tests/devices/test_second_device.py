"""Runs the tests on a second device, registered for good, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def run_there(device: str, marker: str) -> None:
    """Run `on_*.py` on a device, and fail with what they print."""
    files = sorted(map(str, FOLDER.glob("on_*.py")))
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-m", marker]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=os.environ | {"PPL_DGM_DEVICE": device, "PYTEST_ADDOPTS": ""},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_on_host_memory_in_disguise() -> None:
    run_there("mirror", "not slow")


@pytest.mark.slow
def test_all_of_it_on_host_memory_in_disguise() -> None:
    run_there("mirror", "slow")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_cuda_device() -> None:
    run_there("cuda", "not slow")


def test_this_process_knows_no_second_device() -> None:
    with pytest.raises(RuntimeError, match="mirror"):
        torch.empty(0, device="mirror")
