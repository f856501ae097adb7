"""Expected and allowed costs of compilations.

The size of a graph is known only once it is captured, which is cheap, and so is whether its code is
kept from an earlier run.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from ppl_dgm.compile.errors import CaptureError

__all__ = ["TooCostlyError", "check_cost", "compiling_within", "note_compiled", "saving"]

_SPEEDUP = 2.0  # what compiled code is reckoned to gain, at least
_LEAST_SECONDS = 1.5  # to capture a graph and load code that is kept
_FIRST_SECONDS = 4.0  # of the compiler, for the smallest graph
_OPERATION_SECONDS = 0.02  # and for each operation

_ALLOWED = ContextVar("allowed", default=math.inf)


def saving(seconds: float) -> float:
    """Return the time that compiled code saves, in seconds.

    It is 0 where not even loading code pays.

    Args:
        seconds: the time without compiling.
    """
    saved = seconds * (1 - 1 / _SPEEDUP)
    return saved if saved > _LEAST_SECONDS else 0.0


class TooCostlyError(CaptureError):
    """Error for a compilation expected to cost too much."""


@contextmanager
def compiling_within(seconds: float) -> Iterator[None]:
    """Allow compilations that are reckoned to take less.

    Others raise TooCostlyError.
    """
    token = _ALLOWED.set(seconds)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def check_cost(key: Any, operations: int, folder: Path) -> None:
    """Raise TooCostlyError for a graph too costly to compile.

    Args:
        key: what tells graphs apart.
        operations: size of the graph.
        folder: where code is kept.
    """
    allowed = _ALLOWED.get()
    if math.isinf(allowed) or _mark(key, folder).exists():
        return
    reckoned = _FIRST_SECONDS + _OPERATION_SECONDS * operations
    if reckoned > allowed:
        raise TooCostlyError(
            f"compiling is reckoned to take {reckoned:.0f} s, and to save {allowed:.0f} s; "
            "compile=True compiles all the same"
        )


def note_compiled(key: Any, folder: Path) -> None:
    """Note in a folder that it keeps a graph's code.

    Where nothing can be written, nothing is kept.
    """
    mark = _mark(key, folder)
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(key: Any, folder: Path) -> Path:
    text = repr((torch.__version__, key))
    return folder / "compiled" / hashlib.sha256(text.encode()).hexdigest()
