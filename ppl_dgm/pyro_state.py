"""Exclusive use of the global state of Pyro and Python.

This state belongs to the whole process. It is used in turns, and left as it was found.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
from pyro.poutine import runtime

__all__ = ["PYRO_LOCK", "deferred_interrupts", "pyro_in_turn"]

# Pyro's stack of handlers, its parameter store and torch's generators belong to all threads.
PYRO_LOCK = threading.RLock()


@contextmanager
def pyro_in_turn() -> Iterator[None]:
    """Reserve Pyro for the current thread during a block.

    After an error, Pyro's handlers and parameter store are as before the block.

    Threads that run programs take turns, block by block. An interruption inside one of Pyro's
    handlers would otherwise leave it, and its dimensions, to whatever runs next.
    """
    with PYRO_LOCK:
        store, allocator = pyro.get_param_store(), runtime._DIM_ALLOCATOR
        handlers, dims = list(runtime._PYRO_STACK), list(allocator._stack)
        contents = store._params, store._constraints, store._param_to_name
        try:
            yield
        except BaseException:
            runtime._PYRO_STACK[:], allocator._stack[:] = handlers, dims
            store._params, store._constraints, store._param_to_name = contents
            raise


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C during a block.

    The function that is yielded tells whether it came. A second Ctrl-C stops at once.

    Only the main thread is interrupted, and only where nobody else has asked for interrupts.

    Example:
        >>> import os
        >>> with deferred_interrupts() as interrupted:
        ...     os.kill(os.getpid(), signal.SIGINT)
        ...     interrupted()
        True
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    came: list[int] = []

    def hold(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
