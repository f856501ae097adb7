"""Data larger than memory, read part by part."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from ppl_dgm.checked import checked
from ppl_dgm.data.conversion import Arguments, as_arguments, joined_parts
from ppl_dgm.validation import check_sizes

__all__ = ["PART", "Stream", "opened", "size_of"]

IN_MEMORY = 2**30  # bytes above which memory-mapped arrays and loaders are streamed
PART = 1024  # data read at once
LOOKED_AT = 64  # parts


@checked
@dataclass(frozen=True, eq=False)
class Stream:
    """Data that are never in memory together.

    `fit` reads a minibatch at a time, per-datum evidence a part at a time. Memory-mapped arrays and
    loaders of more than 1 GiB are streamed by themselves.

    Args:
        source: an array, often a memory-mapped one, or a torch Dataset, whose rows are read in any
            order and shuffled; or what gives batches in its own order: a DataLoader, a torch
            IterableDataset, or a function that returns an iterator of batches, each as `fit` takes
            data.
        num_data: number of data; needed for epochs, and for latents shared by all data, where the
            source does not tell it.

    Raises:
        TypeError: for a source of another kind; an iterator can be read once only.

    Example:
        >>> stream = Stream(lambda: (torch.full((4,), float(i)) for i in range(3)), num_data=12)
        >>> [len(args[0]) for args, _ in stream.parts(5)]
        [5, 5, 2]
    """

    source: Any
    num_data: int | None = None
    read_in_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_data is not None:
            check_sizes(num_data=self.num_data)
        if not (self.is_indexed or isinstance(self.source, DataLoader) or self._is_iterable):
            raise TypeError(
                f"the source is a {type(self.source).__name__}; expected an array, a torch Dataset "
                "or DataLoader, or a function that returns an iterator of batches, e.g. "
                "Stream(lambda: batches())"
            )
        if self.num_data is None:
            object.__setattr__(self, "num_data", self._told_size())

    @property
    def is_indexed(self) -> bool:
        """Whether rows are read in any order."""
        array = isinstance(self.source, (np.ndarray, Tensor))
        mapped = isinstance(self.source, TorchDataset) and hasattr(self.source, "__getitem__")
        return array or (mapped and not isinstance(self.source, IterableDataset))

    @property
    def _is_iterable(self) -> bool:
        return isinstance(self.source, IterableDataset) or callable(self.source)

    def _told_size(self) -> int | None:
        known = self.source.dataset if isinstance(self.source, DataLoader) else self.source
        try:
            return None if isinstance(known, IterableDataset) else len(known)  # type: ignore[arg-type]
        except TypeError:
            return None

    def take(self, rows: Tensor) -> Arguments:
        """Read the data of these numbers."""
        if isinstance(self.source, (np.ndarray, Tensor)):
            index = rows.numpy() if isinstance(self.source, np.ndarray) else rows
            return as_arguments(self.source[index])
        return as_arguments(default_collate([self.source[int(row)] for row in rows]))

    def parts(self, size: int) -> Iterator[Arguments]:
        """Read all data in order, `size` at a time."""
        if self.is_indexed:
            rows = torch.arange(self.num_data or 0, dtype=torch.int32, device="cpu")
            return (self.take(part) for part in rows.split(size))
        return in_parts(map(as_arguments, self._batches(size)), size)

    def _batches(self, size: int) -> Iterable[Any]:
        if isinstance(self.source, DataLoader):
            return self.source
        if isinstance(self.source, IterableDataset):
            return DataLoader(self.source, batch_size=size)
        return self.source()

    def first_parts(self) -> Iterator[Arguments]:
        """Read the first data, which tell the kind of all."""
        return islice(self.parts(PART), LOOKED_AT)

    def __repr__(self) -> str:
        size = "of unknown length" if self.num_data is None else f"of {self.num_data} data"
        return f"Stream({type(self.source).__name__} {size})"


def in_parts(batches: Iterable[Arguments], size: int) -> Iterator[Arguments]:
    """Cut and join batches so that each has `size` data."""
    held: list[Arguments] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += size_of(batch)
        while count >= size:
            whole = joined_parts(held)
            yield narrowed(whole, 0, size)
            count -= size
            held = [narrowed(whole, size, size + count)] if count else []
    if count:
        yield joined_parts(held)


def size_of(arguments: Arguments) -> int:
    """Number of data in the first tensor."""
    return len(next(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)))


def narrowed(arguments: Arguments, start: int, stop: int) -> Arguments:
    """Rows of all tensors."""
    return tree_map(lambda x: x[start:stop] if isinstance(x, Tensor) else x, arguments)


def opened(data: Any) -> Stream | Arguments:
    """Open data, as a stream where they are large."""
    if isinstance(data, Stream):
        return data
    if isinstance(data, np.memmap) and data.nbytes > IN_MEMORY:
        return Stream(data)
    if not isinstance(data, (DataLoader, IterableDataset)):
        return as_arguments(data)
    stream, held, total = Stream(data), [], 0
    for part in stream.parts(PART):
        held.append(part)
        total += sum(leaf.nbytes for leaf in tree_leaves(part) if isinstance(leaf, Tensor))
        if total > IN_MEMORY:
            return stream
    return joined_parts(held)
