"""Conversion of single arrays of numbers to tensors."""

from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_argument", "is_numbers"]


def as_argument(value: Any) -> Any:
    """Convert an array of numbers, or a Dataset's only tensor.

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
    if hasattr(value, "only_tensor"):  # a Dataset
        return value.only_tensor()
    if hasattr(value, "toarray"):  # a sparse matrix of SciPy
        value = value.toarray()
    if is_numbers(value):
        return torch.tensor(value)
    if hasattr(value, "__array__") and not isinstance(value, (Number, np.generic)):
        return _from_array(np.asarray(value), type(value).__name__)
    return value


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


def is_numbers(value: Any) -> bool:
    """Whether a list holds numbers alone; a tuple is arguments."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, (bool, int, float)) for item in value)
    )


def _is_anndata(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("X", "obs", "var"))
