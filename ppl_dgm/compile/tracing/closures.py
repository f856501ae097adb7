"""Detection and replacement of tensors read by reference.

Those that a captured function reads become inputs of its graph.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer.util import torch_item
from torch.overrides import TorchFunctionMode

from ppl_dgm.compile.errors import NUMBER_CURE, CaptureError, refusal
from ppl_dgm.compile.torch_internals import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    dispatch_modes,
    is_functorch_wrapped_tensor,
    without_modes,
)
from ppl_dgm.compile.tracing.known_values import KnownValues

__all__ = ["Discovery", "Lifting", "Replacement", "is_concrete", "refuse_selections"]

_TENSOR = torch.Tensor
_HOST_READS = {
    _TENSOR.item,
    _TENSOR.tolist,
    _TENSOR.numpy,
    _TENSOR.__bool__,
    _TENSOR.__float__,
    _TENSOR.__int__,
    _TENSOR.__index__,
    _TENSOR.__complex__,
    _TENSOR.__array__,
}
_GET_DATA = _TENSOR.data.__get__  # type: ignore[attr-defined]
_SET_DATA = _TENSOR.data.__set__  # type: ignore[attr-defined]
Constants = tuple[str, ...]

_MASK = "_ppl_dgm_mask"
_HOST_CURE = (
    "A captured program has one structure for all values: use torch.where, masks or enumeration "
    "instead of control flow on values, keep numbers as tensors, build distributions with "
    "validate_args=False, or run with compile=False."
)
_STATE_CURE = (
    "Python's memory is gone after capture: keep state in a buffer of a module "
    "(`register_buffer`), written in place with `copy_`, fill caches by running the program once "
    "before compiling it, or run with compile=False."
)
_SHAPE_CURE = (
    "A captured program has static shapes: use torch.where or a weighted sum instead of selecting "
    "by a mask, or run with compile=False."
)


def swap(value: Any, stand_in: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Replace the tensors in nested tuples, lists and dicts.

    Subclasses (torch.Size, results) stay as they are.
    """
    if isinstance(value, torch.Tensor):
        return stand_in(value)
    if type(value) in (tuple, list):
        return type(value)(swap(item, stand_in) for item in value)
    if type(value) is dict:
        return {key: swap(item, stand_in) for key, item in value.items()}
    return value


def constants_of(value: Any) -> Iterator[str]:
    """Yield the numbers and strings in nested arguments, as text."""
    if isinstance(value, bool | int | float | complex | str | np.generic):
        yield repr(value)
    elif isinstance(value, np.ndarray):
        yield f"array {hash(value.tobytes()):x}"
    elif isinstance(value, tuple | list):
        for item in value:
            yield from constants_of(item)
    elif isinstance(value, dict):
        yield from constants_of(list(value.values()))


def is_concrete(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds memory.

    Stand-ins of the tracer or of a `torch.func` transform hold none.
    """
    return not isinstance(tensor, FakeTensor) and not is_functorch_wrapped_tensor(tensor)


class Lifting(TorchFunctionMode):
    """Function mode that replaces concrete tensors by stand-ins.

    Every torch function gets the stand-ins. Reading values on the host is refused.
    """

    def __init__(self, site: Callable[[], str | None]) -> None:
        super().__init__()
        self._site = site
        self._originals: dict[int, torch.Tensor] = {}
        self._depth = 0
        self.known = KnownValues()

    def note(self, func: Any, constants: Constants) -> None:
        """Record an operation and the Python numbers passed to it."""
        raise TypeError("Lifting is abstract: use Discovery or Replacement")

    def __enter__(self) -> "Lifting":
        self._depth = dispatch_modes()
        return super().__enter__()

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what replaces `tensor` inside the trace."""
        raise TypeError("Lifting is abstract: use Discovery or Replacement")

    def original(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the caller's tensor for one of our stand-ins.

        So in-place operators do not leak the stand-in.
        """
        return self._originals.get(id(tensor), tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            dispatch_modes() < self._depth
        ):  # the tracer's own work, called back from C++ (saved tensors)
            return func(*args, **(kwargs or {}))
        self.note(func, tuple(constants_of((args, kwargs))))
        if func == _SET_DATA:
            raise self._refuse(
                "replaces a tensor's storage (`.data = ...`)", "Write in place, with `copy_`."
            )
        args, kwargs = swap(args, self.stand_in), swap(kwargs or {}, self.stand_in)
        if func == _GET_DATA:
            return args[0].detach()  # the storage behind `.data` is invisible to the tracer
        if self.known:
            return self._returned(func, self._beside(func, args, kwargs))
        return self._returned(func, self._in_trace(func, args, kwargs))

    def _beside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and follow known values."""
        if func in _HOST_READS and (value := self.known.value_of(args[0])) is not None:
            with without_modes():
                return func(value, *args[1:], **kwargs)
        args = self.known.settled_arguments(func, args)
        found = self.known.constants(func, args, kwargs)
        if found is not None:
            return found
        try:
            result = self._in_trace(func, args, kwargs)
        except (CaptureError, RuntimeError, TypeError):
            numbers = self.known.as_numbers((args, kwargs))
            if numbers is None:
                raise
            result = self._in_trace(func, *numbers)
        self.known.follow(func, args, kwargs, result)
        return result

    def _in_trace(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _TENSOR.item and torch_item.__code__ in map(_code, (2, 3)):
            return args[0].detach()  # what Pyro's losses report beside their gradient
        try:
            return self._selection(func, args) if _selects(func, args) else func(*args, **kwargs)
        except (CaptureError, RuntimeError, TypeError) as error:
            raise self._translated(func, error) from error

    def _returned(self, func: Any, result: Any) -> Any:
        if func in _HOST_READS and isinstance(
            result, torch.SymInt | torch.SymFloat | torch.SymBool
        ):
            raise self._host_read(func)
        return swap(result, self.original) if isinstance(result, torch.Tensor) else result

    def _selection(self, func: Any, args: Any) -> Any:
        """Handle `a[mask] = b[mask]`, which has a static shape.

        Any other selection by a mask is refused.
        """
        if func is _TENSOR.__getitem__ and not hasattr(args[0], _MASK):
            error = self._refuse(
                "selects by a mask, so that a shape depends on values,", _SHAPE_CURE
            )
            chosen = args[0].view_as(args[0])
            setattr(chosen, _MASK, (args[1], error))
            return chosen
        if func is _TENSOR.__setitem__ and getattr(args[2], _MASK, (None,))[0] is args[1]:
            return args[0].copy_(torch.where(args[1], args[2], args[0]))
        raise next(getattr(value, _MASK)[1] for value in args if hasattr(value, _MASK))

    def _translated(self, func: Any, error: Exception) -> Exception:
        if isinstance(error, CaptureError):
            return error
        if func in _HOST_READS or isinstance(error, DataDependentOutputException):
            return self._host_read(func)
        if isinstance(error, DynamicOutputShapeException):
            return self._refuse(
                f"makes a tensor whose shape depends on values ({_name(func)})", _SHAPE_CURE
            )
        return error

    def _host_read(self, func: Any) -> CaptureError:
        return self._refuse(f"reads a tensor's value on the host ({_name(func)})", _HOST_CURE)

    def _refuse(self, what: str, cure: str) -> CaptureError:
        return refusal(what, cure, self._site(), traceback.extract_stack())


class Discovery(Lifting):
    """Dry run that collects the concrete tensors of a function.

    These are all that the function touches: parameters, buffers and closure tensors.
    """

    def __init__(self, fake_mode: FakeTensorMode, site: Callable[[], str | None]) -> None:
        super().__init__(site)
        self.mode = fake_mode
        self.found: dict[int, torch.Tensor] = {}
        self.notes: list[tuple[Any, Constants]] = []
        self._twins: dict[int, torch.Tensor] = {}

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Record a concrete tensor and return its shape-only twin.

        Each tensor is recorded once, by identity.
        """
        if self.known.is_constant(tensor):
            return tensor
        if not is_concrete(tensor) and not self._is_of_another_trace(tensor):
            return tensor
        if id(tensor) not in self.found:
            twin = self._twin(tensor)
            self.found[id(tensor)], self._twins[id(tensor)], self._originals[id(twin)] = (
                tensor,
                twin,
                tensor,
            )
            if is_concrete(tensor):
                self.known.know_lifted(twin, tensor)
        return self._twins[id(tensor)]

    def note(self, func: Any, constants: Constants) -> None:
        """Remember the operation."""
        self.notes.append((func, constants))

    def one_turn(
        self, _: torch.Tensor, body: Callable[[Any, Any], Any], carry: Any, fixed: Any
    ) -> Any:
        """Run the body of a loop once, without notes.

        The body will be captured by itself.
        """
        known = len(self.notes)
        carry = body(carry, fixed)
        del self.notes[known:]
        return carry

    def _is_of_another_trace(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor belongs to an outer trace.

        This happens in the body of a loop, to tensors made before the loop.
        """
        return isinstance(tensor, FakeTensor) and tensor.fake_mode is not self.mode

    def _twin(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, FakeTensor):
            return self.mode.from_tensor(tensor)
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )


class Replacement(Lifting):
    """Traced run that replaces recorded tensors by graph inputs."""

    def __init__(
        self,
        discovery: Discovery,
        inputs: Sequence[torch.Tensor],
        site: Callable[[], str | None],
        holder: Callable[[torch.Tensor], str | None],
    ) -> None:
        super().__init__(site)
        self._first_mode, self._holder = discovery.mode, holder
        tensors, self._known = list(discovery.found.values()), Counter(discovery.notes)
        self._functions = {func for func, _ in self._known}
        self._inputs = {id(tensor): value for tensor, value in zip(tensors, inputs, strict=True)}
        self._originals = {id(value): tensor for tensor, value in zip(tensors, inputs, strict=True)}
        for tensor, value in zip(tensors, inputs, strict=True):
            if is_concrete(tensor):
                self.known.know_lifted(value, tensor)

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the graph's input for a lifted tensor.

        Any other tensor is part of the trace and returned as it is. Tensors left by the first run
        are refused.
        """
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self._first_mode:
            raise self._refuse(
                f"hands a tensor from run to run ({self._holder(tensor) or 'in Python'})",
                _STATE_CURE,
            )
        return self._inputs.get(id(tensor), tensor)

    def note(self, func: Any, constants: Constants) -> None:
        """Refuse numbers that differ from those of the first run.

        The first run must have passed them to this operation as many times. It may have done more.
        """
        if not constants or func not in self._functions:
            return
        if not self._known[func, constants]:
            numbers = f"{_name(func)}: {', '.join(constants)[:80]}"
            what = f"uses a number that changes from run to run ({numbers})"
            raise self._refuse(what, NUMBER_CURE)
        self._known[func, constants] -= 1


def refuse_selections(outputs: Sequence[Any]) -> None:
    """Raise where a selection by mask would leave the trace."""
    for output in outputs:
        if hasattr(output, _MASK):
            raise getattr(output, _MASK)[1]


def _selects(func: Any, args: Any) -> bool:
    if func is _TENSOR.__getitem__ and isinstance(args[1], torch.Tensor):
        return args[1].dtype == torch.bool and args[1].shape == args[0].shape
    return any(hasattr(value, _MASK) for value in args if isinstance(value, torch.Tensor))


def _code(depth: int) -> Any:
    """The code that called so many calls ago."""
    return sys._getframe(depth + 1).f_code


def _name(func: Any) -> str:
    return getattr(func, "__qualname__", None) or getattr(func, "__name__", str(func))
