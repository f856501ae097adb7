"""Conversion of common kinds of data to tensors.

These are data of NumPy and pandas, torch data sets, tables and AnnData.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from ppl_dgm.arrays import as_argument, is_numbers
from ppl_dgm.data.dataset import Dataset

__all__ = ["Arguments", "as_arguments", "is_collection", "joined_parts"]

Arguments = tuple[tuple, dict[str, Any]]
_CURE = (
    "expected a Tensor, a NumPy array, a pandas DataFrame, a tuple or dict of these, a Dataset, or "
    "a torch Dataset or DataLoader"
)


def as_arguments(data: Any) -> Arguments:
    """Convert data to positional and named arguments of a program.

    Arrays, Series and lists of numbers are one argument; tuples and lists of arrays one argument
    each. Mappings, DataFrames and tables with `column_names` become named arguments, a column each.
    A torch Dataset or DataLoader is read once, its items stacked; an AnnData gives its matrix.

    Raises:
        TypeError: for data that cannot be meant, naming their type and what is taken.

    Example:
        >>> import numpy as np
        >>> as_arguments({"x": np.zeros(3, dtype="float32")})
        ((), {'x': tensor([0., 0., 0.])})
    """
    if hasattr(data, "read_in_parts"):
        raise TypeError(
            f"all data are needed together here, but they are a {data!r}, which fit and evidence "
            "of each datum read part by part; give a part of them, e.g. an array of 1000 rows"
        )
    if is_collection(data):
        return _opened(data)
    if isinstance(data, Mapping):
        return (), {str(name): as_argument(value) for name, value in data.items()}
    if isinstance(data, list) and data and all(isinstance(one, (str, bytes)) for one in data):
        raise TypeError(f"the data are a list of texts; turn them into numbers. {_CURE}")
    if isinstance(data, (tuple, list)) and not is_numbers(data):
        return tuple(map(as_argument, data)), {}
    return (_one(data),), {}


def _opened(data: Any) -> Arguments:
    """The arguments that one collection stands for."""
    if isinstance(data, Dataset):
        return data.args, data.kwargs
    if isinstance(data, TensorDataset):
        return tuple(data.tensors), {}
    if _is_table(data):
        return (), {str(name): _column(data, name) for name in _columns(data)}
    return _stacked(
        iter(data if isinstance(data, DataLoader) else DataLoader(data, batch_size=256))
    )


def is_collection(value: Any) -> bool:
    """Return whether one value stands for several arguments.

    Such values are data sets, tables and loaders.
    """
    return (
        hasattr(value, "read_in_parts")
        or isinstance(value, (Dataset, TorchDataset, DataLoader))
        or _is_table(value)
    )


def _one(data: Any) -> Any:
    value = as_argument(data)
    if value is data and not isinstance(data, Tensor) and _cannot_be_meant(data):
        raise TypeError(f"the data are a {type(data).__name__}; {_CURE}")
    return value


def _cannot_be_meant(data: Any) -> bool:
    return isinstance(data, (str, bytes, Set, Iterator, Number)) or callable(data) or data is None


def _is_table(data: Any) -> bool:
    """Return whether data have named columns.

    Those of pandas and Hugging Face do.
    """
    is_frame = hasattr(data, "columns") and hasattr(data, "iloc")
    return is_frame or hasattr(data, "column_names")


def _columns(data: Any) -> list[Any]:
    return list(data.columns if hasattr(data, "iloc") else data.column_names)


def _column(table: Any, name: Any) -> Any:
    try:
        return as_argument(table[name])
    except TypeError as error:
        raise TypeError(f"column {name!r}: {error}") from None


def _stacked(batches: Iterator[Any]) -> Arguments:
    """Read a loader into memory and join its batches."""
    return joined_parts([as_arguments(batch) for batch in batches])


def joined_parts(parts: Sequence[Arguments]) -> Arguments:
    """Join the data of several parts."""
    if not parts:
        raise TypeError("the loader gave no batch; expected at least one")
    width, names = len(parts[0][0]), list(parts[0][1])
    args = tuple(_joined([part[0][place] for part in parts]) for place in range(width))
    return args, {name: _joined([part[1][name] for part in parts]) for name in names}


def _joined(values: list[Any]) -> Tensor:
    return torch.cat(
        [value if isinstance(value, Tensor) else default_collate(value) for value in values]
    )
