"""Patches of other libraries that are local to a context.

Only the context that asked for them sees them, and no other thread.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

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

    every: ClassVar[list["ContextPatches"]] = []

    def __init__(self, *patches: Patch) -> None:
        self._patches = patches
        self._inside: set[int] = set()  # threads
        self._undo: list[Callable[[], None]] = []
        self.every.append(self)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter the block; blocks nest."""
        thread = threading.get_ident()
        if thread in self._inside:
            yield
            return
        try:
            self._install(thread)
            yield
        finally:
            self._remove(thread)

    @classmethod
    def held(cls) -> list["ContextPatches"]:
        """Return those in whose block this thread is."""
        return [patches for patches in cls.every if threading.get_ident() in patches._inside]

    @classmethod
    def leave_all_but(cls, held: list["ContextPatches"]) -> None:
        """Leave the blocks of all others.

        An interruption may have kept this thread in them.
        """
        for patches in cls.every:
            if patches not in held:
                patches._remove(threading.get_ident())

    def _install(self, thread: int) -> None:
        with _LOCK:
            self._inside.add(thread)
            if not self._undo:
                for patch in self._patches:
                    self._replace(patch)

    def _remove(self, thread: int) -> None:
        with _LOCK:
            self._inside.discard(thread)
            while not self._inside and self._undo:
                self._undo[-1]()  # before it is forgotten: it may be interrupted, and done again
                self._undo.pop()

    def _replace(self, patch: Patch) -> None:
        """Replace a function by one that checks who calls.

        What undoes this is noted.
        """
        owner, name, replacement = patch
        original, inside, own = getattr(owner, name), self._inside, vars(owner).get(name)

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            here = threading.get_ident() in inside
            return (replacement if here else original)(*args, **kwargs)

        def undo() -> None:
            if own is not None:
                setattr(owner, name, own)
            elif name in vars(owner):
                delattr(owner, name)

        bound = hasattr(original, "__self__") and isinstance(owner, type)
        self._undo.append(undo)
        setattr(owner, name, staticmethod(dispatch) if bound else dispatch)
