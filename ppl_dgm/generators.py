"""Random number generators of the CPU and of every device in use: put back after a block."""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "generator_states",
    "seed_generators",
    "set_generator_states",
    "unmoved_generators",
    "unmoved_python_generators",
]

_WITHOUT_GENERATOR = ("cpu", "meta")  # torch's CPU generator is always kept


@contextmanager
def unmoved_generators(*devices: torch.device | None) -> Iterator[None]:
    """Put the generators of the CPU, of these devices and of those in use back after a block."""
    states = generator_states(*devices)
    try:
        yield
    finally:
        set_generator_states(states)


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


def generator_states(*devices: torch.device | None) -> dict[str, Tensor]:
    """The states of the generators of the CPU, of these devices and of those in use, by device."""
    states = {
        str(device): torch.get_device_module(device).get_rng_state(device)
        for device in accelerators(devices)
    }
    return {"cpu": torch.get_rng_state()} | states


def set_generator_states(states: Mapping[str, Tensor]) -> None:
    """Set generators to states, wherever these lie, leaving out devices that are not here."""
    torch.set_rng_state(states["cpu"].cpu())
    for name in states.keys() - {"cpu"}:
        device = torch.device(name)
        if device in _present(device.type):
            torch.get_device_module(device).set_rng_state(states[name].cpu(), device)


def seed_generators(seed: int, *devices: torch.device | None) -> None:
    """Seed the generators of the CPU, of these devices and of those in use."""
    torch.default_generator.manual_seed(seed)
    for device in accelerators(devices):
        state = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


def accelerators(devices: Iterable[torch.device | None]) -> list[torch.device]:
    """The devices with a generator of their own: given ones, torch's default and those in use."""
    given = [*filter(None, devices), torch.get_default_device()]
    found = [_numbered(device) for device in given if device.type not in _WITHOUT_GENERATOR]
    return list(dict.fromkeys([*found, *_in_use()]))


def _numbered(device: torch.device) -> torch.device:
    """A device with its index."""
    if device.index is not None:
        return device
    return torch.device(device.type, torch.get_device_module(device).current_device())


def _in_use() -> list[torch.device]:
    """The accelerators that this process has worked on, which it may draw from unasked."""
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.get_device_module(kind).is_initialized():
        return []
    return _present(kind.type)


def _present(kind: str) -> list[torch.device]:
    """The devices of a kind in this machine."""
    module = getattr(torch, kind, None)
    if module is None or not module.is_available():
        return []
    return [torch.device(kind, index) for index in range(module.device_count())]
