"""Conversion of common kinds of data to tensors.

These are data of NumPy and pandas, torch data sets, tables and AnnData.
"""

from collections.abc import Iterator, Mapping, Set
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from ppl_dgm.data.dataset import Dataset

__all__ = ["Arguments", "as_argument", "as_arguments", "is_collection"]

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
    if is_collection(data):
        return _opened(data)
    if isinstance(data, Mapping):
        return (), {str(name): as_argument(value) for name, value in data.items()}
    if isinstance(data, (tuple, list)) and not _is_numbers(data):
        return tuple(map(as_argument, data)), {}
    return (_one(data),), {}


def _opened(data: Any) -> Arguments:
    """The arguments that one collection stands for."""
    if isinstance(data, Dataset):
        return data.args, data.kwargs
    if isinstance(data, TensorDataset):
        return tuple(data.tensors), {}
    if _is_table(data):
        return (), {str(name): as_argument(data[name]) for name in _columns(data)}
    return _stacked(
        iter(data if isinstance(data, DataLoader) else DataLoader(data, batch_size=256))
    )


def as_argument(value: Any) -> Any:
    """Convert an array of numbers to a tensor.

    Other values stay as they are.

    Raises:
        TypeError: for sparse, complex or non-numeric arrays.

    Example:
        >>> as_argument([1.0, 2.0])
        tensor([1., 2.])
    """
    if isinstance(value, Tensor):
        return _checked(value)
    if _is_anndata(value):
        value = value.X
    if hasattr(value, "toarray"):  # a sparse matrix of SciPy
        value = value.toarray()
    if _is_numbers(value):
        return torch.tensor(value)
    if hasattr(value, "__array__") and not isinstance(value, (Number, np.generic)):
        return _from_array(np.asarray(value), type(value).__name__)
    return value


def is_collection(value: Any) -> bool:
    """Return whether one value stands for several arguments.

    Such values are data sets, tables and loaders.
    """
    return isinstance(value, (Dataset, TorchDataset, DataLoader)) or _is_table(value)


def _one(data: Any) -> Any:
    value = as_argument(data)
    if value is data and not isinstance(data, Tensor) and _cannot_be_meant(data):
        raise TypeError(f"the data are a {type(data).__name__}; {_CURE}")
    return value


def _cannot_be_meant(data: Any) -> bool:
    return isinstance(data, (str, bytes, Set, Iterator, Number)) or callable(data) or data is None


def _checked(value: Tensor) -> Tensor:
    if value.layout != torch.strided:
        raise TypeError("the data are a sparse tensor; expected a dense one, data.to_dense()")
    if value.is_meta:
        raise TypeError("the data are on the meta device, which holds no values; name another")
    if value.is_complex():
        raise TypeError(
            "the data are complex; expected real numbers, e.g. torch.view_as_real(data)"
        )
    return value


def _from_array(array: np.ndarray, kind: str) -> Tensor:
    """Convert a NumPy array to a tensor.

    The tensor shares its memory where torch can.
    """
    if array.dtype.kind not in "biuf":
        if array.dtype.kind == "c":
            raise TypeError(f"the {kind} is complex; expected real numbers")
        raise TypeError(
            f"the {kind} holds {array.dtype}, not numbers; turn categories into codes, e.g. "
            "pandas.factorize(column)[0], and leave out what is text"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes with few unsigned kinds
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array).to(torch.get_default_device())


def _is_numbers(value: Any) -> bool:
    """Whether a list holds numbers alone; a tuple is arguments."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, (bool, int, float)) for item in value)
    )


def _is_table(data: Any) -> bool:
    """Return whether data have named columns.

    Those of pandas and Hugging Face do.
    """
    is_frame = hasattr(data, "columns") and hasattr(data, "iloc")
    return is_frame or hasattr(data, "column_names")


def _columns(data: Any) -> list[Any]:
    return list(data.columns if hasattr(data, "iloc") else data.column_names)


def _is_anndata(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("X", "obs", "var"))


def _stacked(batches: Iterator[Any]) -> Arguments:
    """Read a loader into memory and join its batches."""
    parts = [as_arguments(batch) for batch in batches]
    if not parts:
        raise TypeError("the loader gave no batch; expected at least one")
    width, names = len(parts[0][0]), list(parts[0][1])
    args = tuple(_joined([part[0][place] for part in parts]) for place in range(width))
    return args, {name: _joined([part[1][name] for part in parts]) for name in names}


def _joined(values: list[Any]) -> Tensor:
    return torch.cat(
        [value if isinstance(value, Tensor) else default_collate(value) for value in values]
    )
