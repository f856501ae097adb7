"""Minibatches along the data plate."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.poutine.messenger import Messenger

from ppl_dgm.program.arguments import select_data

__all__ = ["Batch", "Batches", "Rows", "Scaled"]

Batch = tuple[tuple, dict[str, Any]]
Rows = Any  # places of data: a tensor `[size]`, or a slice


@dataclass(frozen=True)
class Batches:
    """Minibatches of all data of a program.

    Every epoch has a new shuffle, which the seed alone determines.

    Args:
        args, kwargs: the program's arguments.
        num_data: size of the data plate; 1 where there is none.
        batch_size: data in a minibatch.
        seed: of the shuffles.
        held: places of the tensors that all data share.
    """

    args: tuple
    kwargs: Mapping[str, Any]
    num_data: int
    batch_size: int
    seed: int
    held: frozenset[int] = frozenset()
    is_streamed: ClassVar[bool] = False

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch; the last minibatch may be smaller."""
        return -(-self.num_data // self.batch_size)

    @property
    def everything(self) -> Batch:
        """All data."""
        return self.args, dict(self.kwargs)

    def from_step(self, step: int) -> Iterator[tuple[int, Rows]]:
        """Yield (size, rows) of minibatches for ever.

        The first is that of a step.
        """
        while True:
            epoch, position = divmod(step, self.per_epoch)
            order = self._order(epoch)
            for start in range(position * self.batch_size, self.num_data, self.batch_size):
                rows = order[start : start + self.batch_size] if order is not None else slice(None)
                yield min(self.batch_size, self.num_data - start), rows
                step += 1

    def full_from_step(self, step: int) -> int | None:
        """Count the full minibatches from a step on.

        None stands for all.
        """
        if self.num_data % self.batch_size == 0:
            return None
        return self.per_epoch - 1 - step % self.per_epoch

    def _order(self, epoch: int) -> torch.Tensor | None:
        if self.batch_size >= self.num_data:
            return None
        return torch.randperm(
            self.num_data,
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch),
            device="cpu",
        )

    def select(self, rows: Any) -> Batch:
        """The arguments with their data at `rows`."""
        whole = isinstance(rows, slice) and rows == slice(None)
        return self.everything if whole else self.picker()(self.everything, rows)

    def picker(self) -> Callable[[Batch, Rows], Batch]:
        """Return a function that takes rows of all data.

        It holds no data itself, so that they can be inputs of compiled code.
        """
        num_data, held = self.num_data, self.held
        return lambda batch, rows: select_data(*batch, num_data, rows, held)

    def in_order(self) -> Iterator[tuple[int, Batch]]:
        """All data once, in order, a minibatch at a time."""
        for start in range(0, self.num_data, self.batch_size):
            stop = min(start + self.batch_size, self.num_data)
            yield (
                stop - start,
                self.select(slice(None) if stop - start == self.num_data else slice(start, stop)),
            )


class ScaleData(Messenger):
    """Pyro messenger that scales the sites of the data plate.

    A minibatch then stands for all data beside global latents.
    """

    def __init__(self, plate: str, factor: float) -> None:
        super().__init__()
        self.plate = plate
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


class Scaled:
    """A model or guide whose data count `factor` times."""

    def __init__(self, fn: Any, plate: str, factor: float) -> None:
        self.fn, self.plate, self.factor = fn, plate, factor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ScaleData(self.plate, self.factor):
            return self.fn(*args, **kwargs)
