"""Run a block from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_dgm.generators import accelerators, unmoved_generators


@contextmanager
def seeded(seed: int | None, *devices: torch.device | None) -> Iterator[None]:
    """Run a block from a seed, leaving torch's generators as they were; None changes nothing."""
    if seed is None:
        yield
        return
    with unmoved_generators(*devices):
        torch.default_generator.manual_seed(seed)
        for device in accelerators(devices):
            state = torch.Generator(device).manual_seed(seed).get_state()
            torch.get_device_module(device).set_rng_state(state, device)
        yield
