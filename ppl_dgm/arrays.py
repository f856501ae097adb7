"""Conversion of single arrays of numbers to tensors."""

from array import array as Buffer
from collections.abc import Iterator
from decimal import Decimal
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_argument", "is_numbers"]

_NUMBERS = (bool, int, float, np.number, np.bool_)
_CURE_OF_TEXT = (
    "turn categories into codes, e.g. pandas.factorize(column)[0], and leave out what is text"
)
_CURES = {
    "M": "turn dates into numbers, e.g. (dates - dates[0]) / numpy.timedelta64(1, 'D')",
    "m": "turn times into numbers, e.g. times / numpy.timedelta64(1, 's')",
}


def as_argument(value: Any) -> Any:
    """Convert an array of numbers, or a Dataset's only tensor.

    A list of numbers is an array, and so is a list of lists of equal lengths. Arrays in a dict,
    tuple or list are converted too. Other values stay as they are.

    Raises:
        TypeError: for sparse, complex, masked or non-numeric arrays, and for iterators.
        ValueError: for integers that do not fit into 64 bits.

    Example:
        >>> as_argument([1.0, 2.0])
        tensor([1., 2.])
    """
    if isinstance(value, Tensor):
        return _checked(value)
    if _is_anndata(value):
        value = value.X
    if hasattr(value, "only_tensor"):  # a Dataset
        return value.only_tensor()
    if hasattr(value, "toarray"):  # a sparse matrix of SciPy
        value = value.toarray()
    if is_numbers(value):
        return torch.tensor(value)
    if isinstance(value, (range, Buffer)):
        value = np.asarray(value)
    if isinstance(value, Iterator):
        raise TypeError(
            f"the data are a {type(value).__name__}, which can be read once only; make an array or "
            "a list of it"
        )
    if hasattr(value, "__array__") and not isinstance(value, (Number, np.generic)):
        return _from_array(_unmasked(value), type(value).__name__)
    return _with_tensors(value)


def _with_tensors(value: Any) -> Any:
    """A dict, tuple or list, the arrays in it converted.

    Other values, and those without arrays, are returned as they are.
    """
    if type(value) is dict:
        items = list(map(as_argument, value.values()))
        changed = any(new is not old for new, old in zip(items, value.values(), strict=True))
        return dict(zip(value, items, strict=True)) if changed else value
    if type(value) in (tuple, list):
        items = list(map(as_argument, value))
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        return type(value)(items) if changed else value
    return value


def _unmasked(value: Any) -> np.ndarray:
    """An array of NumPy, none of it masked."""
    if np.ma.is_masked(value):
        raise TypeError(
            f"the {type(value).__name__} masks {np.ma.count_masked(value)} values; leave them out, "
            "or give the mask to the program as an argument of its own (poutine.mask)"
        )
    return np.asarray(value)


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
    if array.dtype.kind == "O":
        array = _of_objects(array)
    if array.dtype.kind not in "biuf":
        if array.dtype.kind == "c":
            raise TypeError(f"the {kind} is complex; expected real numbers")
        cure = _CURES.get(array.dtype.kind, _CURE_OF_TEXT)
        raise TypeError(f"the {kind} holds {array.dtype}, not numbers; {cure}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if (array > np.iinfo(np.int64).max).any():
            raise ValueError(
                f"the {kind} holds {array.max()}, more than 64-bit integers with a sign reach; "
                "turn it into real numbers, data.astype(float)"
            )
        array = array.astype(np.int64)  # torch computes with few unsigned kinds
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array).to(torch.get_default_device())


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Numbers that are held as objects.

    Other arrays are returned as they are.
    """
    if not array.size or not all(isinstance(one, (*_NUMBERS, Decimal)) for one in array.flat):
        return array
    numbers = np.array(array.tolist())
    return numbers if numbers.dtype.kind in "biuf" else array.astype(float)


def is_numbers(value: Any) -> bool:
    """Whether a list holds numbers, or equally long such lists.

    A tuple is arguments.
    """
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, _NUMBERS) for item in value):
        return True
    same = all(isinstance(item, list) and len(item) == len(value[0]) for item in value)
    return same and all(map(is_numbers, value))


def _is_anndata(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("X", "obs", "var"))
