"""Identity of a computation, in named parts.

With it a checkpoint of another computation is refused.
"""

import hashlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from functools import partial, singledispatch
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Identity", "difference", "digest", "identify", "referred"]

Identity = dict[str, str]
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def identify(parts: Mapping[str, Any]) -> Identity:
    """Name the content of each part.

    Short values are named by text, all others by digest.

    Args:
        parts: anything by name; tensors count by dtype, shape and values, modules by class,
            settings, parameters and buffers, functions by their code and what they close over.

    Example:
        >>> import torch
        >>> first = identify({"batch_size": 10, "x": torch.zeros(3)})
        >>> second = identify({"batch_size": 20, "x": torch.zeros(3)})
        >>> difference(first, second)
        'batch_size is 20, not 10'
    """
    return {name: _named(value) for name, value in parts.items()}


def difference(saved: Any, mine: Identity) -> str:
    """Describe how this computation differs from a saved one.

    The result is empty if it does not.
    """
    if not isinstance(saved, Mapping):
        return "the file names no computation"
    names = [*mine, *(name for name in saved if name not in mine)]
    return "; ".join(
        _told(name, saved, mine) for name in names if saved.get(name) != mine.get(name)
    )


def digest(value: Any) -> str:
    """Compute a digest of a value's content.

    Settings, tensors, modules and functions count by content, not by place in memory.

    Example:
        >>> import torch
        >>> digest([torch.ones(2), "a"]) == digest([torch.ones(2), "a"])
        True
        >>> digest(torch.ones(2)) == digest(torch.ones(2).double())
        False
    """
    total = hashlib.blake2b(digest_size=16)
    for piece in _pieces(value, {}):
        total.update(len(piece).to_bytes(8, "little") + piece)
    return total.hexdigest()


def _named(value: Any) -> str:
    if isinstance(value, _PLAIN) and len(repr(value)) <= 40:
        return repr(value)
    kind = "Tensor" if isinstance(value, Tensor) else type(value).__name__
    return f"<{kind} {digest(value)}>"


def _told(name: str, saved: Mapping[str, str], mine: Identity) -> str:
    if name not in saved or name not in mine:
        return f"{name} is only in {'this computation' if name in mine else 'the file'}"
    if saved[name].startswith("<") or mine[name].startswith("<"):
        return f"{name} differs"
    return f"{name} is {mine[name]}, not {saved[name]}"


def _pieces(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield the content of a value in pieces.

    A value met before is given by its number, so that cycles end.
    """
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
        return
    if id(value) in seen:
        yield f"again {list(seen).index(id(value))}".encode()
        return
    seen[id(value)] = value  # held, so that no other takes its place in memory
    yield _kind(value).encode()
    yield from _content(value, seen)


def _kind(value: Any) -> str:
    if isinstance(value, (type, FunctionType, ModuleType)):
        return getattr(value, "__qualname__", value.__name__)
    if isinstance(value, Tensor):  # whatever its device and its class
        return "torch.Tensor"
    module = type(value).__module__
    # Our own classes may move between the files of their room.
    home = ".".join(module.split(".")[:2]) if module.startswith("ppl_dgm.") else module
    return f"{home}.{type(value).__qualname__}"


def _content(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield from _array(value.detach().cpu().contiguous(), str(value.dtype))
    elif isinstance(value, np.ndarray):
        yield from _array(torch.from_numpy(np.ascontiguousarray(value)), str(value.dtype))
    elif isinstance(value, (torch.dtype, torch.device, torch.Size)):
        yield str(value).encode()
    elif isinstance(value, (type, ModuleType)):
        return
    else:
        parts = _parts(value)
        yield str(len(parts)).encode()
        for part in parts:
            yield from _pieces(part, seen)


def _array(values: Tensor, dtype: str) -> Iterator[bytes]:
    yield f"{dtype} {tuple(values.shape)}".encode()
    # A single number may have any stride, which bytes may not.
    dense = values.reshape(-1).clone(memory_format=torch.contiguous_format)
    yield dense.view(torch.uint8).numpy().tobytes()


@singledispatch
def _parts(value: Any) -> list[Any]:
    """List the parts of a compound value.

    Objects of unknown kinds count by class and settings.
    """
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return [_settings(value)]


@_parts.register
def _(value: Mapping) -> list[Any]:
    return [part for item in value.items() for part in item]


@_parts.register
def _(value: Set) -> list[Any]:
    return sorted(map(digest, value))


@_parts.register
def _(value: list | tuple) -> list[Any]:
    return list(value)


@_parts.register
def _(value: partial) -> list[Any]:
    return [value.func, value.args, value.keywords]


@_parts.register
def _(value: MethodType) -> list[Any]:
    return [value.__func__, value.__self__]


@_parts.register
def _(value: FunctionType) -> list[Any]:
    return [
        *_code(value.__code__),
        value.__defaults__,
        value.__kwdefaults__,
        *referred(value).values(),
    ]


@_parts.register
def _(value: nn.Module) -> list[Any]:
    parts = (value._parameters, value._buffers, value._modules)
    return [_settings(value), *map(dict, parts)]


def _settings(value: Any) -> dict[str, Any]:
    """Collect the public settings of an object.

    They are attributes that are plain values, tensors, arrays, tuples or functions.
    """
    kinds = (*_PLAIN, Tensor, np.ndarray, FunctionType, partial, tuple)
    found = getattr(value, "__dict__", {})
    return {
        name: found[name]
        for name in sorted(found)
        if not name.startswith("_") and isinstance(found[name], kinds)
    }


def _code(code: CodeType) -> list[Any]:
    nested = [
        part for const in code.co_consts if isinstance(const, CodeType) for part in _code(const)
    ]
    plain = [const for const in code.co_consts if not isinstance(const, CodeType)]
    return [code.co_code, code.co_names, plain, *nested]


def referred(function: FunctionType) -> dict[str, Any]:
    """Return the values that a function refers to, by name.

    They are what it closes over, and the globals of its own module that it names.
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    outer = function.__globals__
    own = {name: outer[name] for name in _names(function.__code__) if name in outer}
    return closed | {name: value for name, value in own.items() if _is_own(value, function)}


def _names(code: CodeType) -> list[str]:
    """Return the names in code and in the functions inside."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return [*code.co_names, *(name for part in inner for name in _names(part))]


def _is_own(value: Any, function: FunctionType) -> bool:
    """Return whether a global belongs to the function's author.

    It does if it is data, or a function of the same module.
    """
    if isinstance(value, FunctionType):
        return value.__module__ == function.__module__
    return not isinstance(value, (type, ModuleType))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is assigned later
        return False
