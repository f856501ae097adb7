"""Convert users' data to what families of vectors take."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ppl_dgm.data.conversion import Arguments
from ppl_dgm.program.parameters import ParameterScope, ScopedCallable

__all__ = ["AdaptedData"]

_LOG = logging.getLogger("ppl_dgm")
_OTHER_DTYPES = ("same dtype", "expected scalar type")  # in errors of torch


class AdaptedData(ParameterScope):
    """Conversion of data to the form that a program takes."""

    vectors: ClassVar[bool] = False  # whether data are vectors [N, D] in the parameters' dtype
    site: str
    model: ScopedCallable

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()
        self._only_dtype: torch.dtype | None = None  # in which alone a user's program runs

    def adapt(
        self, args: tuple, kwargs: Mapping[str, Any], bright: bool | None = None
    ) -> tuple[tuple, dict[str, Any]]:
        """Convert data to the form that vector families take.

        Images become `[N, D]`, and numbers get the dtype of the parameters; so do real covariates.
        Bytes become what the likelihood takes, which is told once; `bright` is what `is_bright`
        says of all the data, where these are a part of them.

        Programs of users' own get their data as they are, or in their only dtype; see `set_dtype`.
        """
        like = next((p for p in self.parameters() if p.is_floating_point()), None)
        if not self.vectors or like is None:
            return tree_map(self._in_only_dtype, (args, dict(kwargs)))
        first = [self._of_bytes(as_vectors(x, like), x, bright) for x in args[:1]]
        named = {n: as_real(v, like) for n, v in kwargs.items()}
        if self.site in kwargs:
            x = kwargs[self.site]
            named[self.site] = self._of_bytes(as_vectors(x, like), x, bright)
        return (*first, *(as_real(value, like) for value in args[1:])), named

    def _in_only_dtype(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self._only_dtype) if real and self._only_dtype else value

    def set_dtype(self, error: Exception, arguments: Arguments) -> bool:
        """Give data the program's dtype, where theirs fails.

        A matrix of NumPy's doubles times a vector of floats is an error of torch, where their sum
        is none.

        Args:
            error: of the run that failed.
            arguments: which it was given.

        Returns:
            Whether the data have another dtype than before.
        """
        reason = str(error.__cause__)
        if self._only_dtype or not any(part in reason for part in _OTHER_DTYPES):
            return False
        like = next((p for p in self.parameters() if p.is_floating_point()), None)
        wanted = torch.get_default_dtype() if like is None else like.dtype
        found = {leaf.dtype for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
        if not any(dtype.is_floating_point and dtype != wanted for dtype in found):
            return False
        self._only_dtype = wanted
        return True

    def _of_bytes(self, values: Any, x: Any, bright: bool | None) -> Any:
        """Values of the likelihood where the data are bytes."""
        likelihood = self._taker_of_bytes() if is_bytes(x) else None
        if likelihood is None:
            return values
        values, told = likelihood.of_bytes(values, x.dim() > 2, bright)
        if told and told not in self._told:
            self._told.add(told)
            _LOG.warning("data of bytes under %s: %s", type(likelihood).__name__, told)
        return values

    def _taker_of_bytes(self) -> Any:
        """What observes the data: program or module."""
        parts = (self, getattr(self.model.fn, "likelihood", None), *self.model.modules())
        return next((part for part in parts if hasattr(part, "of_bytes")), None)

    def is_bright(self, parts: Iterable[Arguments]) -> bool | None:
        """Return whether any byte of data is above 127.

        The data come in parts.

        It is looked for only where that matters: None for other data, or for a likelihood that
        takes all bytes alike.
        """
        if not self.vectors or not getattr(self._taker_of_bytes(), "judges_bytes", False):
            return None
        for args, kwargs in parts:
            x: Any = kwargs.get(self.site, args[0] if args else None)
            if not is_bytes(x):
                return None
            if bool((x > 127).any()):
                return True
        return False

    def as_data(self, x: Tensor) -> Tensor:
        """Convert one tensor of data as `adapt` does."""
        return self.adapt((x,), {})[0][0]

    def as_finest_data(self, x: Tensor) -> Tensor:
        """Convert data, real numbers in their own precision."""
        return as_vectors(x, x) if x.is_floating_point() else self.as_data(x)


def is_bytes(x: Any) -> bool:
    """Whether data are numbers from 0 to 255."""
    return getattr(x, "dtype", None) is torch.uint8


def as_vectors(x: Any, like: Tensor) -> Any:
    """Reshape data `[N, ...]` to `[N, D]`.

    They get the dtype of a parameter.
    """
    if not isinstance(x, Tensor):
        return x
    return (x.flatten(1) if x.dim() > 2 else x).to(like.dtype)


def as_real(value: Any, like: Tensor) -> Any:
    """Give real numbers the dtype of a parameter."""
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(like.dtype) if real else value
