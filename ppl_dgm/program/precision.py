"""Programs in float64, and the effects of rounding.

A program runs in float64 whatever it is written in. Another mode tells how far rounding moves its
results.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ppl_dgm.context_patches import ContextPatches, Patch

__all__ = ["Shaking", "in_float64", "to_double"]

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CASTS = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
    Tensor.cfloat: Tensor.cdouble,  # type: ignore[attr-defined]
    Tensor.chalf: Tensor.cdouble,  # type: ignore[attr-defined]
}
_UNTOUCHED = {"__deepcopy__", "__len__", "__repr__", "__reduce_ex__", "dim", "numel", "size"}
_PICKS = {"__getitem__", "index_select"}  # of few numbers among many, which alone are raised
_IN_PLACE = {"__setitem__", "__set__", "backward", "register_hook", "retain_grad"}
_PLAIN = frozenset({int, float, bool, str, type(None), type(...), slice})
_FACTORIES = _device_constructors()
_WIDE_DEFAULT = ContextPatches(Patch(torch, "get_default_dtype", lambda: torch.float64))


@contextmanager
def in_float64() -> Iterator[None]:
    """Run the programs of this thread in float64.

    See `Widening`.
    """
    with _WIDE_DEFAULT(), Widening():
        yield


def map_leaves(value: Any, change: Any) -> Any:
    """Change the leaves of nested plain tuples, lists and dicts."""
    if type(value) in (tuple, list):
        return type(value)([map_leaves(part, change) for part in value])
    if type(value) is dict:
        return {key: map_leaves(part, change) for key, part in value.items()}
    return change(value)


def to_double(leaf: Any) -> Any:
    """Convert a tensor or dtype to double precision.

    It becomes float64 or complex128. Anything else stays.
    """
    if isinstance(leaf, Tensor):
        return leaf.to(WIDE[leaf.dtype]) if leaf.dtype in WIDE else leaf
    return WIDE.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf


def with_all_digits(leaf: Any, kinds: tuple[torch.dtype, ...] = WHOLE) -> Any:
    """Raise whole numbers and literals to double precision.

    Results made of these alone have torch's default precision.
    """
    if isinstance(leaf, Tensor) and leaf.dtype in kinds:
        return leaf.double()
    return torch.tensor(leaf, dtype=torch.float64) if isinstance(leaf, float) else leaf


class Widening(TorchFunctionMode):
    """Torch function mode that computes in float64.

    Every torch function gets its arguments in float64, and makes tensors of no fewer digits.

    Parameters, buffers, closures and literals are raised as they are used and stay what they are.
    What a program writes in place to a tensor from outside is rounded to that tensor's dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self._raised: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__get__":
            found = func(*args)
            return WIDE.get(found, found) if type(found) is torch.dtype else found
        if name in _UNTOUCHED:
            return func(*args, **kwargs)
        if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
            return self._write(func, args, kwargs)
        if name not in _PICKS:
            args = tuple([self._widen_argument(given) for given in args])
            kwargs = {key: self._widen_argument(given) for key, given in kwargs.items()}
        result = _CASTS.get(func, func)(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype in WIDE:
            made = name not in _PICKS
            return self._made_anew(func, args, kwargs, result) if made else to_double(result)
        return result

    def _widen_argument(self, given: Any) -> Any:
        """Raise an argument.

        The most frequent kinds come first, as this runs at every operation.
        """
        kind = type(given)
        if kind in _PLAIN or (kind is Tensor and given.dtype not in WIDE):
            return given
        return map_leaves(given, self._widen)

    def _widen(self, leaf: Any) -> Any:
        """Raise a parameter once, anything else at each use."""
        if not isinstance(leaf, nn.Parameter) or leaf.dtype not in WIDE:
            return to_double(leaf)
        if id(leaf) not in self._raised:
            self._raised[id(leaf)] = leaf, to_double(leaf)
        return self._raised[id(leaf)][1]

    def _made_anew(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """What was made of literals or whole numbers alone."""
        dtype = WIDE[result.dtype]
        if func in _FACTORIES:
            return func(*args, **{**kwargs, "dtype": dtype})
        for kinds in (WHOLE, (*WHOLE, torch.bool)):  # truth values only where nothing else helps
            if result.dtype == dtype:
                break
            raised = partial(with_all_digits, kinds=kinds)
            with suppress(TypeError, RuntimeError, IndexError):  # of what must stay as it is
                result = func(*map_leaves(args, raised), **map_leaves(kwargs, raised))
        return result.to(dtype)

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Write to a tensor in place, in its own dtype."""
        if not args:  # torch.nn.init hands its tensor on by name
            return func(**kwargs)
        target = args[0]

        def fit(leaf: Any) -> Any:
            mixed = isinstance(leaf, Tensor) and leaf is not target and leaf.is_floating_point()
            return leaf.to(target.dtype) if mixed else leaf

        fitted = map_leaves(args[1:], fit) if isinstance(target, Tensor) else args[1:]
        return func(target, *fitted, **kwargs)


class Shaking(TorchDispatchMode):
    """Torch mode that perturbs results to measure rounding.

    Every result of an operation moves by one unit in its last place, up or down. Another run then
    tells what rounding does.

    Whole numbers that their dtype holds exactly stay, and what would overflow. Stochastic
    arithmetic: Vignes (1993), "A stochastic arithmetic for reliable scientific computation".

    Example:
        >>> with Shaking():
        ...     shaken = (torch.tensor(1.0) + 1e8 - 1e8).item()
        >>> abs(shaken - 1.0) > 0.5
        True
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return result
        return tree_map_only(Tensor, self._shaken, result)

    def _shaken(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        info = torch.finfo(value.dtype)
        sign = torch.rand(value.shape, generator=self._generator(value.device), device=value.device)
        moved = value * (1 + info.eps * (2 * sign.to(value).round() - 1))
        exact = (value == value.round()) & (value.abs() < 0.5 / info.eps) | ~moved.isfinite()
        return torch.where(exact, value, moved)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]
