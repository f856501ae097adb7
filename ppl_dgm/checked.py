"""Check the arguments of public calls against their annotations.

They are checked before any work.
"""

import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import torch
from torch import Tensor

from ppl_dgm.arrays import as_argument
from ppl_dgm.half_exits import end_half_exits

__all__ = ["Kind", "Limit", "checked", "kind_of"]

Limit = Annotated[float, "a number"]  # infinite where nothing is limited
Target = TypeVar("Target", bound=Callable)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SHOWN = (NoneType, bool, Real, str, tuple, list, dict)  # told by their value
_PYTHONS = (NoneType, bool, int, float, str)
_WHOLE_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_PROGRAM = "a Program"
_CURES = {
    Tensor: "a Tensor; use torch.as_tensor",
    os.PathLike: "a path",
    torch.nn.Module: "a torch.nn.Module",
    torch.device: "a torch.device",
    bytes: "bytes",
}


class Kind(NamedTuple):
    """What an annotation takes, and the test of it."""

    expected: str
    holds: Callable[[Any], bool]
    by_value: bool = False  # a number or one of few choices, not an object of some class
    each: "Kind | None" = None  # what a collection holds
    takes_tensor: bool = False


def checked(target: Target) -> Target:
    """Check arguments of a function or constructor by their annotations.

    Numbers are no booleans and finite but for a `Limit`, whole numbers no floats, one text no
    collection of texts; a `seed` is one that every generator takes. Scalars of NumPy and whole
    ones of torch become Python's.
    `Annotated[kind, words]` takes what the kind does and tells of it in those words; other
    annotations (`Any`, type variables, protocols) are not looked at. Where a Tensor is taken, an
    array or a Dataset of one tensor is made one.

    Raises:
        TypeError, ValueError: on a call, naming the argument, what came and what was expected.

    Example:
        >>> @checked
        ... def grid(size: int, mode: Literal["linear", "cubic"] = "linear") -> int:
        ...     return size
        >>> grid(3)
        3
        >>> grid(2.5)
        Traceback (most recent call last):
        ValueError: size is 2.5; expected a whole number
    """
    if isinstance(target, type):
        target.__init__ = _checked(target.__init__)  # type: ignore[misc]
        return target  # type: ignore[return-value]
    return _checked(target)


def _checked(function: Any) -> Any:
    parameters = inspect.signature(function).parameters.values()
    positional = [one.name for one in parameters if one.kind in _POSITIONAL]
    named = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}

    @cache
    def kinds() -> dict[str, Kind]:
        hints = get_type_hints(function, include_extras=True)
        found = {name: kind_of(hints[name]) for name in {*positional, *named} & hints.keys()}
        if "seed" in found:
            found["seed"] = (
                _SEED if found["seed"] is _PLAIN[int] else _either([_SEED, _PLAIN[None]])
            )
        return {name: kind for name, kind in found.items() if kind is not None}

    def taken(name: str, value: Any, args: tuple) -> Any:
        kind = kinds().get(name)
        if kind is None or kind.holds(value := _plain(kind, value)):
            return value
        value = _as_tensor(kind, value)
        if not kind.holds(value):
            raise _error(_caller(function, args), name, value, kind)
        return value

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [taken(name, value, args) for name, value in zip(positional, args, strict=False)]
        named = {name: taken(name, value, args) for name, value in kwargs.items()}
        try:
            return function(*given, *args[len(given) :], **named)
        except BaseException as error:
            end_half_exits(error)
            raise

    return call


def _plain(kind: Kind, value: Any) -> Any:
    """Convert NumPy's scalars and torch's whole ones to Python's.

    Theirs are no seeds of torch, overflow, and are not told from others by `is`. Rows of whole
    ones, such as an order, become lists where single numbers are taken.
    """
    if type(value) in _PYTHONS or kind.takes_tensor:
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
        return value.item()
    if isinstance(value, Tensor):
        whole = value.dtype in _WHOLE_DTYPES
    else:
        whole = isinstance(value, np.ndarray) and value.dtype.kind in "iu"
    rows = kind.each is not None and not kind.each.takes_tensor
    return value.tolist() if whole and (value.ndim == 0 or rows) else value


def _as_tensor(kind: Kind, value: Any) -> Any:
    """Convert an array or Dataset where a tensor is taken.

    A DataFrame becomes a mapping where that is taken too.
    """
    if not kind.takes_tensor or isinstance(value, list):
        return value
    if hasattr(value, "columns") and kind.holds({}):
        return {str(name): as_argument(value[name]) for name in value.columns}
    return as_argument(value)


def _caller(function: Any, args: tuple) -> str:
    """The name of a function; of a method the class's."""
    special = function.__name__ in ("__init__", "__call__")
    return type(args[0]).__name__ if special else function.__name__


def _error(caller: str, name: str, value: Any, kind: Kind) -> Exception:
    if kind.expected == _PROGRAM:
        told = f"{caller} takes a Program, not {_named(type(value))}"
        return TypeError(f"{told}; write Program(model, guide)")
    if kind.each and _is_collection(value):
        wrong = next(one for one in value if not kind.each.holds(one))
        return TypeError(f"{name} holds {_told(wrong)}; expected {kind.expected}")
    plain = isinstance(value, _SHOWN) and not kind.each
    error = ValueError if kind.by_value and plain else TypeError
    told = _told(value) if kind.by_value or not isinstance(value, (str, Real)) else ""
    told = told or _named(type(value))
    return error(f"{name} is {told}; expected {kind.expected}{_cure(value, kind)}")


def _told(value: Any) -> str:
    """A value where it is short, else its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shown = isinstance(value, _SHOWN) and len(repr(value)) <= 60
    return repr(value) if shown else _named(type(value))


def _named(kind: type) -> str:
    """The name of a class with its article."""
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _cure(value: Any, kind: Kind) -> str:
    if kind.each and kind.each.holds(value):
        return f", e.g. [{value!r}]"
    if isinstance(value, type):
        return f", an instance such as {value.__name__}(...)"
    given = any(base.__name__ == "Program" for base in type(value).__mro__)
    return "; make the estimator first, then call it: estimator(program, *data)" if given else ""


@cache
def kind_of(annotation: Any) -> Kind | None:
    """Return what an annotation takes.

    It is None for one that is not looked at.
    """
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind = kind_of(parts[0])
        return kind and kind._replace(expected=parts[1])
    if origin in (Union, UnionType):
        return _either([kind_of(part) for part in parts])
    if origin is Literal:
        told = ", ".join(map(repr, parts))
        return Kind("one of " * (len(parts) > 1) + told, partial(_is_one_of, parts), True)
    if annotation is Callable or origin is Callable:
        return Kind("a function", callable)
    return _class(origin or annotation, parts)


def _class(kind: Any, parts: tuple[Any, ...]) -> Kind | None:
    if not isinstance(kind, type) or kind in (Any, object) or getattr(kind, "_is_protocol", False):
        return None
    if issubclass(kind, Mapping):
        return _mapping(named=parts[:1] == (str,))
    if kind is tuple and parts and Ellipsis not in parts:
        return _fixed([kind_of(part) for part in parts])
    if kind in (Iterable, Iterator):
        return None
    if kind in (list, tuple, set, frozenset) or kind.__module__ == "collections.abc":
        return _collection(kind_of(parts[0]) if parts else None)
    told = _CURES.get(kind, _with_examples(kind))
    return Kind(told, lambda value: isinstance(value, kind), takes_tensor=kind is Tensor)


def _with_examples(kind: type) -> str:
    """Name a class with some public classes of its kind."""
    if not kind.__module__.startswith("ppl_dgm."):
        return _named(kind)
    own = [sub.__name__ for sub in _descendants(kind) if sub.__name__[0] != "_"]
    told = f" ({', '.join(own[:4])}, ...)" if own else ""
    return _PROGRAM if kind.__name__ == "Program" else _named(kind) + told


def _descendants(kind: type) -> list[type]:
    found = kind.__subclasses__()
    return found + [other for sub in found for other in _descendants(sub)]


def _either(kinds: list[Kind | None]) -> Kind | None:
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    return Kind(
        _joined([kind.expected for kind in known]),
        lambda value: any(kind.holds(value) for kind in known),
        any(kind.by_value for kind in known),
        next((kind.each for kind in known if kind.each), None),
        any(kind.takes_tensor for kind in known),
    )


def _joined(parts: list[str]) -> str:
    *others, last = dict.fromkeys(parts)
    between = ", " if " or " in last else " or "
    return ", ".join(others) + between * bool(others) + last


def _fixed(kinds: list[Kind | None]) -> Kind:
    """A tuple, or a list, of so many values."""
    told = dict.fromkeys(kind.expected for kind in kinds if kind is not None)
    return Kind(
        f"{len(kinds)} values, each {' or '.join(told)}",
        lambda value: (
            isinstance(value, (tuple, list))
            and len(value) == len(kinds)
            and all(kind is None or kind.holds(one) for kind, one in zip(kinds, value, strict=True))
        ),
        True,
    )


def _mapping(named: bool) -> Kind:
    return Kind(
        "a mapping, {'name': ...}" if named else "a mapping",
        lambda value: (
            isinstance(value, Mapping)
            and (not named or all(isinstance(name, str) for name in value))
        ),
    )


def _collection(each: Kind | None) -> Kind:
    return Kind(
        f"a collection, each {each.expected}" if each else "a collection",
        lambda value: _is_collection(value) and (each is None or all(map(each.holds, value))),
        True,
        each,
    )


def _is_collection(value: Any) -> bool:
    plain = isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0
    return not plain and hasattr(value, "__len__") and hasattr(value, "__iter__")


def _is_one_of(choices: tuple, value: Any) -> bool:
    flag = isinstance(value, bool)  # which equals 0 or 1
    return any(
        isinstance(value, type(choice)) and flag == isinstance(choice, bool) and value == choice
        for choice in choices
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex() and value.dtype != torch.bool
    real = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    return real and value == value  # no NaN


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


_MAX_SEED = 2**32 - 1
_SEED = Kind(
    f"a whole number from 0 to {_MAX_SEED}",
    lambda value: _is_whole(value) and 0 <= value <= _MAX_SEED,
    True,
)
_PLAIN = {
    int: Kind("a whole number", _is_whole, True),
    Limit: Kind("a number", _is_number, True),
    float: Kind("a finite number", lambda value: _is_number(value) and abs(value) < math.inf, True),
    bool: Kind("True or False", lambda value: isinstance(value, (bool, np.bool_))),
    str: Kind("text", lambda value: isinstance(value, str)),
    NoneType: Kind("None", lambda value: value is None),
    None: Kind("None", lambda value: value is None),
}
