"""Numbers and tensors that a program refers to."""

import dis
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

from ppl_dgm.program.identity import referred

__all__ = ["values_referred"]

_PLAIN = (bool, int, float, complex, str)
_LEADS_ON = (FunctionType, MethodType, partial, nn.Module)
_WRITES = ("STORE_GLOBAL", "STORE_DEREF")


def values_referred(program: Any) -> dict[str, Any]:
    """Collect numbers, texts and tensors that a program refers to.

    They are named. Functions count with what they close over and with globals of their module that
    they name but do not set, objects and modules with their public plain attributes; parameters and
    buffers do not count.

    Example:
        >>> def make(scale):
        ...     return lambda x: x * scale
        >>> values_referred(make(2.0))
        {'make.<locals>.<lambda>: scale': 2.0}
    """
    found: dict[str, list[Any]] = {}
    waiting, seen = [program], [program]
    while waiting:
        part = waiting.pop()
        for name, value in _named(part):
            if _is_data(value):
                found.setdefault(name, []).append(value)
            elif isinstance(value, _LEADS_ON) and not any(value is one for one in seen):
                waiting.append(value)
                seen.append(value)
    return {name: one[0] if len(one) == 1 else one for name, one in sorted(found.items())}


def _is_data(value: Any) -> bool:
    learned = isinstance(value, Tensor) and value.requires_grad
    return isinstance(value, (*_PLAIN, Tensor, np.ndarray)) and not learned


def _named(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a part of a program refers to."""
    if isinstance(part, FunctionType):
        named = referred(part)
        kept = named.keys() - _written(part.__code__)
        yield from ((f"{part.__qualname__}: {name}", named[name]) for name in sorted(kept))
    elif isinstance(part, partial):
        yield "partial: function", part.func
        yield from ((f"partial: argument {place}", value) for place, value in enumerate(part.args))
        yield from ((f"partial: {name}", value) for name, value in part.keywords.items())
    elif isinstance(part, MethodType):
        yield "method", part.__func__
        yield from _attributes(part.__self__)
    else:
        yield "called", getattr(type(part), "forward", type(part).__call__)
        yield from _attributes(part)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield plain attributes of an object and its modules."""
    inside = thing.modules() if isinstance(thing, nn.Module) else [thing]
    for one in inside:
        kept = ((n, v) for n, v in getattr(one, "__dict__", {}).items() if n[0] != "_")
        for name, value in kept:
            if isinstance(value, _PLAIN) and name != "training":
                yield f"{type(one).__name__}.{name}", value


def _written(code: CodeType) -> set[str]:
    """Return the outer names that code sets, as counters."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in _WRITES}
    inner = (_written(const) for const in code.co_consts if isinstance(const, CodeType))
    return own.union(*inner)
