"""Values that stand-ins have at every call.

They follow from data that are the same each time. A captured function may then read them on the
host, loop over them and select by them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.torch_internals import without_modes
from ppl_dgm.generators import generator_states, unmoved_generators

__all__ = ["KnownValues", "constant_data", "is_constant"]

_CONSTANT: ContextVar[frozenset[int]] = ContextVar("constant", default=frozenset())
_FACTORIES = {torch.arange, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor}
_SIZED = {"zeros", "ones", "empty", "rand", "randn", "randint", "eye", "arange", "linspace"}
_SIZED_METHODS = {"new_zeros", "new_ones", "new_empty", "expand", "view", "reshape", "repeat"}
_SHAPED_BY_VALUES = {"_pack_padded_sequence", "nonzero", "masked_select", "unique", "bincount"}
_SHAPED_BY_VALUES |= {"unique_consecutive", "repeat_interleave", "_unique2", "one_hot", "where"}
_FEW = 2**20  # numbers of a lifted tensor that may be read
_NO_WRITES = {"__index__", "__int__", "__invert__", "__iter__"}


@contextmanager
def constant_data(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Declare inputs of captures as constant."""
    token = _CONSTANT.set(frozenset(map(id, tensors)))
    try:
        yield
    finally:
        _CONSTANT.reset(token)


def is_constant(tensor: torch.Tensor) -> bool:
    """Tell whether an input was declared constant."""
    return id(tensor) in _CONSTANT.get()


def writes(func: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether a function writes to an argument.

    It is the first, or `out`.
    """
    name = getattr(func, "__name__", "")
    by_operator = name.startswith("__i") and name not in _NO_WRITES
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or by_operator or name in ("__setitem__", "__set__") or "out" in kwargs


class KnownValues:
    """Real tensors beside the stand-ins that have their values.

    What is computed from known tensors alone is known, unless it is drawn. What is written to
    from elsewhere is not known any longer, nor are views of it.
    """

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._spoilt: set[int] = set()  # storages
        self._given: set[int] = set()  # storages of the data themselves
        self._constants: dict[int, torch.Tensor] = {}
        self._lifted: dict[int, frozenset[torch.Tensor]] = {}  # that stand-ins follow from
        self.read: set[torch.Tensor] = set()  # lifted ones whose values are baked in

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def know(self, stand_in: torch.Tensor, value: torch.Tensor, given: bool = False) -> None:
        """Note the value of a stand-in.

        It may be one of the data themselves.
        """
        self._pairs[id(stand_in)] = stand_in, value
        if given:
            self._given.add(_storage(value))

    def know_lifted(self, stand_in: torch.Tensor, tensor: torch.Tensor) -> None:
        """Note the value of a lifted tensor.

        Masks, indices and counts alone may be read, as long as they stay as they are.
        """
        if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() <= _FEW:
            self.know(stand_in, tensor, given=True)
            self._lifted[id(stand_in)] = frozenset([tensor])

    def of(self, tensor: Any) -> torch.Tensor | None:
        """Return the value of a stand-in, or None."""
        _, value = self._pairs.get(id(tensor), (None, None))
        return None if value is None or _storage(value) in self._spoilt else value

    def value_of(self, tensor: Any) -> torch.Tensor | None:
        """Return a value to be baked in, or None."""
        value = self.of(tensor)
        if value is not None:
            self.read |= self._lifted.get(id(tensor), frozenset())
        return value

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor was computed outside of the trace."""
        return id(tensor) in self._constants

    def settled_arguments(self, func: Any, args: Any) -> Any:
        """Return arguments whose indices and sizes are known numbers."""
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            return args[0], self.settled(args[1]), *args[2:]
        if name in _SIZED:
            return tree_map_only(torch.Tensor, self._number, args)
        if name in _SIZED_METHODS:
            return args[0], *tree_map_only(torch.Tensor, self._number, args[1:])
        return args

    def settled(self, index: Any) -> Any:
        """Return an index whose slices and masks are known numbers."""
        if type(index) is tuple:
            parts = [self.settled(part) for part in index]
            spliced = [part if isinstance(part, _Places) else (part,) for part in parts]
            return tuple(part for group in spliced for part in group)
        if isinstance(index, slice):
            return slice(*map(self._number, (index.start, index.stop, index.step)))
        value = self.of(index)
        if value is None or value.dtype != torch.bool or not value.dim():
            return index
        self.value_of(index)
        with without_modes():
            return _Places(map(self._constant, value.nonzero(as_tuple=True)))

    def _number(self, bound: Any) -> Any:
        value = self.of(bound)
        if value is None or value.dim() or value.is_floating_point():
            return bound
        self.value_of(bound)
        with without_modes():
            return int(value)

    def as_numbers(self, given: Any) -> Any:
        """Return arguments with known whole numbers in place of tensors.

        It is None where there are none.
        """
        whole = tree_map_only(torch.Tensor, self._number, given)
        return whole if len(_tensors(whole)) < len(_tensors(given)) else None

    def follow(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Compute what is known of an operation's result."""
        new = self.computed(func, args, kwargs)
        if new is None:
            if writes(func, kwargs):
                self._spoil(kwargs.get("out", args[0] if args else None))
            return
        lifted = self._followed((args, kwargs))
        for stand_in, value in zip(_tensors(result), _tensors(new[0]), strict=False):
            self.know(stand_in, value)
            self._lifted[id(stand_in)] = lifted

    def _followed(self, given: Any) -> frozenset[torch.Tensor]:
        """Return the lifted tensors that arguments follow from."""
        each = (self._lifted.get(id(tensor), frozenset()) for tensor in _tensors(given))
        return frozenset().union(*each)

    def computed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any] | None:
        """Return a function's result for known tensors, in a list.

        It is None for others.
        """
        given = _tensors((args, kwargs))
        values = [self.of(tensor) for tensor in given]
        if any(value is None for value in values) or not (given or func in _FACTORIES):
            return None
        if writes(func, kwargs) and _storage(values[0]) in self._given:
            return None
        known = dict(zip(map(id, given), values, strict=True))
        real_args, real_kwargs = tree_map_only(
            torch.Tensor, lambda tensor: known[id(tensor)], (args, kwargs)
        )
        return _undrawn(lambda: func(*real_args, **real_kwargs))

    def constants(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return a result whose shape depends on known values.

        It is None for functions without such.
        """
        name = getattr(func, "__name__", "")
        if name == "_pad_packed_sequence" and (sizes := self.value_of(args[1])) is not None:
            with without_modes():
                steps = sizes.tolist()
                lengths = torch.tensor([sum(size > i for size in steps) for i in range(steps[0])])
            return pad_packed(args[0], steps, *args[2:]), self._constant(lengths)
        new = self.computed(func, args, kwargs) if name in _SHAPED_BY_VALUES else None
        if new is None:
            return None
        self.read |= self._followed((args, kwargs))
        return tree_map_only(torch.Tensor, self._constant, new[0])

    def _constant(self, value: torch.Tensor) -> torch.Tensor:
        self._constants[id(value)] = value
        self.know(value, value)
        return value

    def _spoil(self, target: Any) -> None:
        _, value = self._pairs.get(id(target), (None, None))
        if value is None:
            return
        self._spoilt.add(_storage(value))
        if _storage(value) in map(_storage, self.read):
            raise CaptureError(
                "the program writes to a tensor whose value has decided a shape or a branch. Keep "
                "masks and counts that decide as they are, or run with compile=False."
            )


class _Places(tuple):
    """Indices of all dimensions of a mask."""


def _storage(value: Any) -> int:
    return value.untyped_storage()._cdata


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


def _undrawn(compute: Callable[[], Any]) -> list[Any] | None:
    """Compute outside of all traces.

    The result is in a list, or None for what fails or draws random numbers.
    """
    with without_modes(), torch.no_grad(), unmoved_generators():
        before = generator_states()
        try:
            result = compute()
        except Exception:
            return None
        after = generator_states()
        drawn = any(not torch.equal(before[name], after[name]) for name in after)
        return None if drawn else [result]


def pad_packed(
    data: torch.Tensor, sizes: Sequence[int], batch_first: bool, padding: float, total: int
) -> torch.Tensor:
    """Undo a packing of sequences by indices alone.

    `sizes` are the numbers of sequences that go on at each step. torch's own writes to memory that
    stand-ins lack.
    """
    starts = [0, *accumulate(sizes)]
    pad = starts.pop()
    steps = max(len(sizes), total)
    longer = [*sizes, *[0] * (steps - len(sizes))]
    rows = [
        [start + i if i < size else pad for i in range(sizes[0])]
        for start, size in zip([*starts, *[0] * (steps - len(sizes))], longer, strict=True)
    ]
    blank = data.new_full((1, *data.shape[1:]), padding)
    padded = torch.cat([data, blank])[torch.tensor(rows, device=data.device)]
    return padded.transpose(0, 1) if batch_first else padded
