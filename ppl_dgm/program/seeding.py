"""Run a block from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_dgm.generators import seed_generators, unmoved_generators

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int | None, *devices: torch.device | None) -> Iterator[None]:
    """Run a block from a seed, then restore torch's generators.

    With None as the seed, nothing changes.
    """
    if seed is None:
        yield
        return
    with unmoved_generators(*devices):
        seed_generators(seed, *devices)
        yield
