"""Processes that share one piece of work.

They are the ranks of `torch.distributed`, as torchrun starts them. Without an initialised process
group there is one rank, and nothing here communicates.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Ranks", "alone", "from_torchrun", "ranks_now"]

_ALONE = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Ranks:
    """One process among those that share the work.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Places of this process among `count` items.

        The shares of all processes are contiguous, disjoint and as equal as can be.

        Example:
            >>> [Ranks(rank, 3).share(8) for rank in range(3)]
            [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def seed(self, seed: int) -> int:
        """Derive a seed of this process; rank 0 keeps it."""
        return (seed + 0x9E3779B1 * self.rank) % 2**32

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating tensors by their sums over all processes.

        One message carries them all, in the widest of their dtypes.
        """
        if self.size == 1 or not tensors:
            return
        dtype = tensors[0].dtype
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def most(self, number: int, device: torch.device | None = None) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor([number], device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

    def gather(self, value: Any) -> list[Any]:
        """Collect the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def first(self, value: Any) -> Any:
        """The value of rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def equalise(self, modules: Iterable[nn.Module]) -> None:
        """Give parameters and buffers the values of rank 0."""
        if self.size == 1:
            return
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)


def ranks_now() -> Ranks:
    """The processes that share work with this one."""
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """Run a block without the other processes.

    What every process does on its own share of the work runs under it.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def from_torchrun() -> Iterator[Ranks]:
    """Join the processes that torchrun started, for a block.

    Nothing is done where it started none, or where the process is in a group already.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    if not started or dist.is_initialized():
        yield ranks_now()
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield ranks_now()
    finally:
        dist.destroy_process_group()
