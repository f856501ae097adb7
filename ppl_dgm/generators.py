"""Random number generators: put them back after a block."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_WITHOUT_GENERATOR = ("cpu", "meta")  # torch's CPU generator is always kept


@contextmanager
def unmoved_generators(*devices: torch.device | None) -> Iterator[None]:
    """Put the generators of the CPU and of these devices back after a block."""
    kept = accelerators(devices)
    states = [torch.get_device_module(device).get_rng_state(device) for device in kept]
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)
        for device, state in zip(kept, states, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def unmoved_python_generators() -> Iterator[None]:
    """Put the generators of Python and of numpy back after a block."""
    numpys = np.random.mtrand._rand  # type: ignore[attr-defined]
    before = random.getstate(), numpys.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        numpys.set_state(before[1])


def accelerators(devices: Iterable[torch.device | None]) -> list[torch.device]:
    """The devices with a generator of their own, torch's default device among them, each once."""
    given = [*filter(None, devices), torch.get_default_device()]
    return list(dict.fromkeys(d for d in given if d.type not in _WITHOUT_GENERATOR))
