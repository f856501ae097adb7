"""Data larger than memory, read part by part."""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate
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
        source: an array, often a memory-mapped one, a tuple or dict of arrays (positional or named
            arguments), or a torch Dataset, whose rows are read in any order and shuffled; or what
            gives batches in its own order: a DataLoader, a torch IterableDataset, or a function
            that returns a new iterator of batches at each call, each as `fit` takes data.
        num_data: number of data; needed for epochs, and for latents shared by all data, where the
            source does not tell it. A warning tells where another number is read.

    Raises:
        TypeError: for a source of another kind; an iterator can be read once only.
        ValueError: for arrays of several lengths.

    Example:
        >>> stream = Stream(lambda: (torch.full((4,), float(i)) for i in range(3)), num_data=12)
        >>> [len(args[0]) for args, _ in stream.parts(5)]
        [5, 5, 2]
    """

    source: Any
    num_data: int | None = None
    read_in_parts: ClassVar[bool] = True
    _given: list[Callable[[], Any]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_data is not None:
            check_sizes(num_data=self.num_data)
        if not (self.is_indexed or isinstance(self.source, DataLoader) or self._is_iterable):
            raise TypeError(
                f"the source is a {type(self.source).__name__}; expected an array, a tuple or dict "
                "of arrays, a torch Dataset or DataLoader, or a function that returns an iterator "
                "of batches, e.g. Stream(lambda: batches())"
            )
        if self._is_of_arrays and len(set(map(len, arrays_of(self.source)))) > 1:
            raise ValueError(
                f"the arrays have {list(map(len, arrays_of(self.source)))} rows; expected the same "
                "number, one for each datum"
            )
        told = self._told_size()
        if self.num_data is None:
            object.__setattr__(self, "num_data", told)
        if self.is_indexed and self.num_data != told:
            raise ValueError(f"num_data is {self.num_data}; the source has {told} rows")

    @property
    def is_indexed(self) -> bool:
        """Whether rows are read in any order."""
        mapped = isinstance(self.source, TorchDataset) and hasattr(self.source, "__getitem__")
        return self._is_of_arrays or (mapped and not isinstance(self.source, IterableDataset))

    @property
    def _is_of_arrays(self) -> bool:
        arrays = arrays_of(self.source)
        return bool(arrays) and all(isinstance(one, (np.ndarray, Tensor)) for one in arrays)

    @property
    def _is_iterable(self) -> bool:
        return isinstance(self.source, IterableDataset) or callable(self.source)

    def _told_size(self) -> int | None:
        if self._is_of_arrays:
            return len(arrays_of(self.source)[0])
        try:
            return loader_size(self.source) if isinstance(self.source, DataLoader) else self._size()
        except TypeError:
            return None

    def _size(self) -> int | None:
        return None if isinstance(self.source, IterableDataset) else len(self.source)

    def take(self, rows: Tensor) -> Arguments:
        """Read the data of these numbers."""
        if self._is_of_arrays:

            def taken(x: Any) -> Any:
                return x[rows.numpy() if isinstance(x, np.ndarray) else rows]

            return as_arguments(tree_map(taken, self.source))
        return as_arguments(default_collate([self.source[int(row)] for row in rows]))

    def parts(self, size: int) -> Iterator[Arguments]:
        """Read all data in order, `size` at a time."""
        if self.is_indexed:
            rows = torch.arange(self.num_data or 0, dtype=torch.int32, device="cpu")
            return (self.take(part) for part in rows.split(size))
        return self._counted(in_parts(map(as_arguments, self._batches(size)), size))

    def _counted(self, parts: Iterator[Arguments]) -> Iterator[Arguments]:
        """Parts, whose data are compared with the number said."""
        count = 0
        for part in parts:
            count += size_of(part)
            yield part
        if not count:
            raise ValueError(f"the {self!r} gives no data; expected a batch at each reading")
        if self.num_data not in (None, count):
            warnings.warn(
                f"the {self!r} gave {count} data; epochs and latents that all data share go by the "
                "number said. Give num_data as it is",
                stacklevel=2,
            )

    def _batches(self, size: int) -> Iterable[Any]:
        if isinstance(self.source, DataLoader):
            return not_repeated(self.source)
        if isinstance(self.source, IterableDataset):
            return DataLoader(self.source, batch_size=size)
        batches = self.source()
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"the function of the stream returned a {type(batches).__name__}; expected an "
                "iterator of batches"
            )
        if isinstance(batches, Iterator) and any(last() is batches for last in self._given):
            raise TypeError(
                f"the function of the stream returned the same {type(batches).__name__} again, "
                "which can be read once only; make a new one in the function"
            )
        self._given[:] = [weakly(batches)]
        return batches

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
    """Number of data in the tensors.

    Raises:
        ValueError: for several numbers, or for no tensors.
    """
    leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    sizes = {len(leaf) if leaf.dim() else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"a batch has tensors of shapes {[list(leaf.shape) for leaf in leaves]}; expected the "
            "same first dimension, which counts the data, of each"
        )
    return len(leaves[0])


def narrowed(arguments: Arguments, start: int, stop: int) -> Arguments:
    """Rows of all tensors."""
    return tree_map(lambda x: x[start:stop] if isinstance(x, Tensor) else x, arguments)


def arrays_of(source: Any) -> list[Any]:
    """Arrays of a tuple, list or dict, or the source."""
    if isinstance(source, Mapping):
        return list(source.values())
    return list(source) if type(source) in (tuple, list) else [source]


def weakly(value: Any) -> Callable[[], Any]:
    """Reference that keeps no generator, and what it holds, alive."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def loader_size(loader: DataLoader) -> int | None:
    """Number of data in a loader's pass, where known.

    Samplers may leave data out, and the last batch may be dropped.
    """
    if isinstance(loader.dataset, IterableDataset):
        return None
    if type(loader.batch_sampler) is not BatchSampler:  # of the user's own, or none
        return len(loader.dataset) if loader.batch_sampler is None else None  # type: ignore[arg-type]
    size = len(loader.sampler)  # type: ignore[arg-type]
    return size - size % (loader.batch_size or 1) if loader.drop_last else size


def not_repeated(loader: DataLoader) -> Iterator[Any]:
    """Batches of a loader, whose workers are compared.

    Each worker reads a whole iterable data set that does not ask which of them it is in.
    """
    first = []
    for batch in loader:
        if isinstance(loader.dataset, IterableDataset) and len(first) < loader.num_workers:
            first.append(as_arguments(batch))
            if len(first) > 1 and same_data(first[0], first[-1]):
                warnings.warn(
                    "two workers of the loader gave the same first batch, so that data may be read "
                    f"{loader.num_workers} times; share them out in __iter__ by "
                    "torch.utils.data.get_worker_info(), or set num_workers=0",
                    stacklevel=2,
                )
        yield batch


def same_data(one: Arguments, other: Arguments) -> bool:
    """Whether all tensors are equal."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def is_large(data: Any) -> bool:
    """Whether data are memory-mapped arrays that are streamed."""
    arrays = arrays_of(data)
    alike = all(isinstance(one, (np.ndarray, Tensor)) and one.ndim for one in arrays)
    if not alike or len(set(map(len, arrays))) != 1:
        return False
    return sum(one.nbytes for one in arrays if isinstance(one, np.memmap)) > IN_MEMORY


def opened(data: Any) -> Stream | Arguments:
    """Open data, as a stream where they are large."""
    if isinstance(data, Stream):
        return data
    if is_large(data):
        return Stream(data)
    if not isinstance(data, (DataLoader, IterableDataset)):
        return as_arguments(data)
    stream, held, total = Stream(data), [], 0
    for part in stream.parts(PART):
        held.append(part)
        total += sum(leaf.nbytes for leaf in tree_leaves(part) if isinstance(leaf, Tensor))
        if total > IN_MEMORY:
            return stream
    tell_dropped(data)
    return joined_parts(held)


def tell_dropped(loader: Any) -> None:
    """Warn of the last batch that a loader leaves out."""
    if not isinstance(loader, DataLoader) or not loader.drop_last:
        return
    sampler: Any = loader.sampler
    known = loader_size(loader) if hasattr(sampler, "__len__") else None
    if known is not None and known < len(sampler):
        warnings.warn(
            f"the loader drops its last batch (drop_last=True), so that {len(sampler) - known} of "
            f"{len(sampler)} data are left out; set drop_last=False to have all",
            stacklevel=2,
        )
