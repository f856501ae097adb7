"""Random number generators: reading, seeding and restoring their states.

They are those of the CPU and of every device in use, and those of Python and numpy.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "generator_states",
    "python_generator_states",
    "seed_generators",
    "set_generator_states",
    "set_python_generator_states",
    "unmoved_generators",
    "unmoved_python_generators",
]

_WITHOUT_GENERATOR = ("cpu", "meta")  # torch's CPU generator is always kept


@contextmanager
def unmoved_generators(*devices: torch.device | None) -> Iterator[None]:
    """Restore the torch generators after a block.

    They are those of the CPU, of the given devices and of the devices in use.
    """
    states = generator_states(*devices)
    try:
        yield
    finally:
        set_generator_states(states)


@contextmanager
def unmoved_python_generators() -> Iterator[None]:
    """Restore the generators of Python and numpy after a block."""
    states = python_generator_states()
    try:
        yield
    finally:
        set_python_generator_states(states)


def python_generator_states() -> tuple[Any, Any]:
    """Return the states of Python's and numpy's generators."""
    return random.getstate(), np.random.mtrand._rand.get_state()  # type: ignore[attr-defined]


def set_python_generator_states(states: tuple[Any, Any]) -> None:
    """Set the generators of Python and of numpy to states."""
    random.setstate(states[0])
    np.random.mtrand._rand.set_state(states[1])  # type: ignore[attr-defined]


def generator_states(*devices: torch.device | None) -> dict[str, Tensor]:
    """Return the states of the torch generators by device.

    They are those of the CPU, of the given devices and of the devices in use.
    """
    states = {
        str(device): torch.get_device_module(device).get_rng_state(device)
        for device in accelerators(devices)
    }
    return {"cpu": torch.get_rng_state()} | states


def set_generator_states(states: Mapping[str, Tensor]) -> None:
    """Set the torch generators to saved states.

    The states may lie on any device. Devices that this machine lacks are left out.
    """
    torch.set_rng_state(states["cpu"].cpu())
    for name in states.keys() - {"cpu"}:
        device = torch.device(name)
        if device in _present(device.type):
            torch.get_device_module(device).set_rng_state(states[name].cpu(), device)


def seed_generators(seed: int, *devices: torch.device | None) -> None:
    """Seed the torch generators.

    They are those of the CPU, of the given devices and of the devices in use.
    """
    torch.default_generator.manual_seed(seed)
    for device in accelerators(devices):
        state = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


def accelerators(devices: Iterable[torch.device | None]) -> list[torch.device]:
    """List the devices with a generator of their own.

    They are the given devices, torch's default one and those in use, without the CPU.
    """
    given = [*filter(None, devices), torch.get_default_device()]
    found = [_numbered(device) for device in given if device.type not in _WITHOUT_GENERATOR]
    return list(dict.fromkeys([*found, *_in_use()]))


def _numbered(device: torch.device) -> torch.device:
    """A device with its index."""
    if device.index is not None:
        return device
    return torch.device(device.type, torch.get_device_module(device).current_device())


def _in_use() -> list[torch.device]:
    """List all accelerators if this process has used one.

    A program may draw from them without being asked to.
    """
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
