"""Conversion of common kinds of data to tensors.

These are data of NumPy and pandas, torch data sets, tables and AnnData.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from ppl_dgm.arrays import as_argument, is_numbers
from ppl_dgm.data.dataset import Dataset

__all__ = ["Arguments", "as_arguments", "is_collection", "joined_parts"]

Arguments = tuple[tuple, dict[str, Any]]
_FRAMES = ("iloc", "get_column")  # of pandas, of polars
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
    batches = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=256)
    return joined_parts([as_arguments(batch) for batch in batches])


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

    Those of pandas, polars, pyarrow and Hugging Face do, and structured arrays of NumPy.
    """
    is_frame = hasattr(data, "columns") and any(map(partial(hasattr, data), _FRAMES))
    return is_frame or hasattr(data, "column_names") or _has_fields(data)


def _has_fields(data: Any) -> bool:
    """Whether data are a structured array of NumPy."""
    return isinstance(data, np.ndarray) and data.dtype.names is not None


def _columns(data: Any) -> list[Any]:
    if _has_fields(data):
        return list(data.dtype.names)
    names = list(data.columns if hasattr(data, "columns") else data.column_names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TypeError(f"the name {twice[0]!r} stands above two columns; give each its own")
    return names


def _column(table: Any, name: Any) -> Tensor:
    try:
        found = as_argument(table[name])
        if isinstance(found, Tensor):
            return found
        return as_argument(np.stack([np.asarray(row) for row in found]))
    except (TypeError, ValueError) as error:
        raise TypeError(f"column {name!r}: {error}") from None


def joined_parts(parts: Sequence[Arguments]) -> Arguments:
    """Join the data of several parts."""
    if not parts:
        raise TypeError("the loader gave no batch; expected at least one")
    width, names = len(parts[0][0]), set(parts[0][1])
    for number, (args, named) in enumerate(parts[1:], 2):
        if len(args) != width or set(named) != names:
            raise TypeError(
                f"batch {number} has {told(args, named)}, the first one {told(*parts[0])}; "
                "expected the same of each"
            )
    args = tuple(
        _joined([part[0][place] for part in parts], f"argument {place}") for place in range(width)
    )
    return args, {
        name: _joined([part[1][name] for part in parts], f"argument {name!r}")
        for name in parts[0][1]
    }


def told(args: tuple, named: Mapping[str, Any]) -> str:
    """Number of arguments, and names of the named ones."""
    called = f" and {', '.join(map(repr, named))}" if named else ""
    return f"{len(args)} positional argument{'s' * (len(args) != 1)}{called}"


def _joined(values: list[Any], name: str) -> Tensor:
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} of the batches is a {type(value).__name__}, not numbers; turn it into "
                "numbers, or leave it out of what the loader gives"
            )
        if value.dim() == 0:
            raise TypeError(
                f"{name} of the batches is a single number; expected a first dimension that counts "
                "the data. Give the loader a batch_size, or batches of shape [data, ...]"
            )
    shapes = sorted({tuple(value.shape[1:]) for value in values})
    if len(shapes) > 1:
        raise TypeError(
            f"{name} has data of several shapes, {shapes[0]} and {shapes[1]}; expected one. Pad or "
            "cut them, and give the program a mask"
        )
    return torch.cat(values)
