"""Minibatches that are read as they are needed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, ClassVar, NamedTuple

import torch

from ppl_dgm.data.conversion import Arguments
from ppl_dgm.data.stream import Stream, opened, size_of
from ppl_dgm.fitting.batches import Batch, Batches, Rows
from ppl_dgm.program import Program
from ppl_dgm.program.arguments import move_data

__all__ = ["Read", "StreamedBatches", "first_read"]

MINIBATCH = 128  # data where a stream is given without a batch size
EPOCH = 1000  # steps that stand for an epoch of a stream of unknown length


class Read(NamedTuple):
    """A minibatch that was read, in place of its rows."""

    batch: Batch


@dataclass(frozen=True)
class StreamedBatches(Batches):
    """Minibatches of a stream.

    Rows of an indexed source are shuffled anew in every epoch; others come in their own order,
    again from the start when they end.
    """

    stream: Any = None
    read: Callable[[Arguments], Batch] = lambda part: part
    is_streamed: ClassVar[bool] = True

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        known = self.stream.num_data
        return EPOCH if known is None else -(-known // self.batch_size)

    def from_step(self, step: int) -> Iterator[tuple[int, Rows]]:
        passes = self._shuffled(step) if self.stream.is_indexed else self._in_own_order(step)
        return ((size_of(part), Read(self.read(part))) for part in passes)

    def _shuffled(self, step: int) -> Iterator[Arguments]:
        while True:
            epoch, position = divmod(step, self.per_epoch)
            rows = self._order_of(epoch).split(self.batch_size)
            yield from map(self.stream.take, rows[position:])
            step += len(rows) - position

    def _order_of(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        size = self.stream.num_data
        return torch.randperm(size, generator=generator, dtype=torch.int32, device="cpu")

    def _in_own_order(self, step: int) -> Iterator[Arguments]:
        passes = (part for _ in count() for part in self.stream.parts(self.batch_size))
        return islice(passes, step, None)

    def select(self, rows: Any) -> Batch:
        """The minibatch that was read, or the first one."""
        return rows.batch if isinstance(rows, Read) else self.everything

    def in_order(self) -> Iterator[tuple[int, Batch]]:
        """All data once, a minibatch at a time."""
        for part in self.stream.parts(self.batch_size):
            yield size_of(part), self.read(part)


def first_read(
    program: Program, data: Any, device: Any, batch_size: int | None, bright: bool | None = None
) -> tuple[Batch, Callable[..., StreamedBatches] | None, bool | None]:
    """Read data, or the first minibatch of a stream.

    For a stream, what makes minibatches of it is returned too; and whether the data are bytes of
    which some are bright, as `Program.is_bright` says, unless that is known from other data.

    Raises:
        ValueError: for a stream without data.
    """
    found = opened(data)
    if bright is None:
        known = found.first_parts() if isinstance(found, Stream) else [found]
        bright = program.is_bright(known)

    def read(part: Arguments) -> Batch:
        return program.adapt(*move_data(part, device), bright)

    if not isinstance(found, Stream):
        return read(found), None, bright
    size = batch_size or MINIBATCH
    first = next(iter(found.parts(size)), None)
    if first is None:
        raise ValueError(f"the {found!r} gives no data; expected at least one batch")
    batch = read(first)

    def make(seed: int) -> StreamedBatches:
        return StreamedBatches(
            *batch,
            num_data=found.num_data or size_of(first),
            batch_size=min(size, size_of(first)),
            seed=seed,
            stream=found,
            read=read,
        )

    return batch, make, bright
