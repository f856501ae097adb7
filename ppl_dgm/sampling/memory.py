"""Divide work so that it fits a budget of memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program import Bound

__all__ = ["MEMORY", "allocated_bytes", "chunk_plan", "join_parts", "part_of", "some_of", "spans"]

# Bytes that one chunk of particles may allocate, all intermediate results counted.
MEMORY = 256 * 2**20


def join_parts(parts: list[Tensor], groups: bool = False) -> Tensor:
    """Join results from parts of the data.

    They are joined along the data, after a dimension of groups if there is one.
    """
    return parts[0] if parts[0].dim() == int(groups) else torch.cat(parts, int(groups))


def chunk_plan(
    bound: Bound, num_particles: int, memory: int, work: Callable[[Bound], Any]
) -> Iterator[tuple[int, Bound, int]]:
    """Divide data and particles into chunks that fit memory.

    Data are divided first, then particles, so that `work` on one chunk allocates about `memory`
    bytes.

    Yields (first datum, the program bound to that part of the data, particles at a time).
    """
    structure, num_data = bound.structure, bound.num_data or 1
    divisible = structure.divisible and structure.per_datum
    probe = part_of(bound, 0, min(num_data, 64)) if divisible else bound
    probed = min(num_data, 64) if divisible else 1
    rows = max(1, int(memory / (allocated_bytes(lambda: work(probe)) / probed + 1)))
    data = min(num_data, rows) if divisible else num_data
    particles = max(1, min(num_particles, rows // data if divisible else rows))
    for start in range(0, num_data, data) if divisible else (0,):
        yield start, part_of(bound, start, start + data) if divisible else bound, particles


def part_of(bound: Bound, start: int, stop: int) -> Bound:
    """The program bound to data `start` to `stop`."""
    args, kwargs = bound.select(slice(start, stop))
    return replace(
        bound, args=args, kwargs=kwargs, num_data=min(stop, bound.num_data or stop) - start
    )


def some_of(bound: Bound, most: int) -> tuple[Bound, Any]:
    """Restrict the program to some of its data.

    They are evenly spaced among all, at the index that is returned too. A program that cannot be
    divided keeps all data.
    """
    if not (bound.structure.divisible and bound.structure.per_datum and bound.num_data):
        return bound, ...
    size = min(bound.num_data, most)
    index = torch.linspace(0, bound.num_data - 1, size, device=bound.device).round().long()
    args, kwargs = bound.select(index)
    return replace(bound, args=args, kwargs=kwargs, num_data=size), index


def spans(bound: Bound, num_points: int, memory: int) -> list[tuple[int, int]]:
    """Divide data into parts that fit memory.

    Each part has a start and a stop. Densities at `num_points` points of each of its data fit into
    memory.
    """
    num_data = bound.num_data or 1
    if not (bound.structure.per_datum and bound.structure.divisible):
        return [(0, num_data)]
    few = min(num_data, 16)
    probe = part_of(bound, 0, few)
    row = allocated_bytes(lambda: probe.log_joint(probe.draw(1).values)) / few
    rows = max(1, int(memory / (row * num_points + 1)))
    return [(start, min(start + rows, num_data)) for start in range(0, num_data, rows)]


class AllocationCounter(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations create."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(leaf, Tensor) and not func.is_view:
                self.bytes += leaf.numel() * leaf.element_size()
        return out


def allocated_bytes(run: Callable[[], Any]) -> int:
    """Count the bytes that one run allocates.

    Freed bytes count too, so that the number is an upper bound of the peak.
    """
    with torch.no_grad(), unmoved_generators(), AllocationCounter() as counter:
        run()
    return counter.bytes
