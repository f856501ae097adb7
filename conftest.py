"""What tests and the examples in docstrings share.

A quiet Pyro, one thread, and proof that they leave no global state.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def unchanged_globals() -> Iterator[None]:
    """Start each test from an empty parameter store and a fixed seed.

    A test that changes global settings fails.
    """
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    before = _global_settings()
    yield
    leaked = sorted(pyro.get_param_store().keys())
    after = _global_settings()
    pyro.clear_param_store()
    torch.set_default_dtype(before["default dtype"])
    torch.set_num_threads(before["threads"])
    assert after == before, f"the test changed global settings: {before} -> {after}"
    assert not leaked, (
        f"the test left parameters in Pyro's global store: {leaked}; "
        "if it runs plain Pyro on purpose, do so inside `with pyro.get_param_store().scope():`"
    )


def _global_settings() -> dict:
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "validation": torch.distributions.Distribution._validate_args,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference cases and data kept outside the repository.

    Tests that need it skip where it is absent.
    """
    beside = Path(__file__).resolve().parents[1] / "shared"
    folder = Path(os.environ.get("PPL_DGM_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set PPL_DGM_SHARED to their folder")
    return folder
