"""Patches of other libraries that are local to a context.

Only the context that asked for them sees them, and no other thread.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["ContextPatches", "Patch"]

_LOCK = threading.RLock()


class Patch(NamedTuple):
    """Function to be patched, and its replacement.

    The function belongs to a module or class.
    """

    owner: Any
    name: str
    replacement: Callable


class ContextPatches:
    """Context manager that patches functions for one thread only.

    It replaces functions of other libraries inside a `with` block, for the thread that is in it.

    While any thread is in the block, each function is one that asks who calls: the threads outside
    get the original. When the last one leaves, also by an error or KeyboardInterrupt, the originals
    are put back.

    Example:
        >>> import math
        >>> rounded = ContextPatches(Patch(math, "sqrt", lambda x: 1))
        >>> with rounded():
        ...     math.sqrt(2.0)
        1
        >>> round(math.sqrt(2.0), 3)
        1.414
    """

    def __init__(self, *patches: Patch) -> None:
        self._patches = patches
        self._inside: ContextVar[bool] = ContextVar("inside", default=False)
        self._num_inside = 0
        self._undo: list[Callable[[], None]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter the block; blocks nest."""
        if self._inside.get():
            yield
            return
        token = self._inside.set(True)
        try:
            self._install()
            yield
        finally:
            self._inside.reset(token)
            self._remove()

    def _install(self) -> None:
        with _LOCK:
            self._num_inside += 1
            if self._num_inside == 1:
                for patch in self._patches:
                    self._undo.append(self._replace(patch))

    def _remove(self) -> None:
        with _LOCK:
            self._num_inside -= 1
            while self._num_inside == 0 and self._undo:
                self._undo.pop()()

    def _replace(self, patch: Patch) -> Callable[[], None]:
        """Replace a function by one that checks who calls.

        Returns a function that undoes this.
        """
        owner, name, replacement = patch
        original, inside, own = getattr(owner, name), self._inside, vars(owner).get(name)

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            return (replacement if inside.get() else original)(*args, **kwargs)

        bound = hasattr(original, "__self__") and isinstance(owner, type)
        setattr(owner, name, staticmethod(dispatch) if bound else dispatch)
        return lambda: delattr(owner, name) if own is None else setattr(owner, name, own)
