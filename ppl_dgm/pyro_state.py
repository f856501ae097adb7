"""Exclusive use of the global state of Pyro and Python.

This state belongs to the whole process. It is used in turns, and left as it was found.
"""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import infer, poutine
from pyro.poutine import runtime

from ppl_dgm.context_patches import ContextPatches
from ppl_dgm.generators import (
    generator_states,
    python_generator_states,
    set_generator_states,
    set_python_generator_states,
)
from ppl_dgm.half_exits import end_half_exits

__all__ = ["PYRO_LOCK", "deferred_interrupts", "import_dynamo", "pyro_in_turn"]

# Pyro's stack of handlers, its parameter store and torch's generators belong to all threads.
PYRO_LOCK = threading.RLock()


class Kept:
    """What libraries hold for the whole process.

    It is put back after an error.

    Blocks put back what they change; an interruption inside that may leave some of it.
    """

    def __init__(self) -> None:
        store, allocator = pyro.get_param_store(), runtime._DIM_ALLOCATOR
        self.handlers, self.dims = list(runtime._PYRO_STACK), list(allocator._stack)
        self.contents = store._params, store._constraints, store._param_to_name
        self.patches = ContextPatches.held()
        outermost = not self.handlers
        self.settings = [(put, get()) for get, put in _SETTINGS] if outermost else []

    def put_back(self) -> None:
        """Put everything back."""
        store = pyro.get_param_store()
        runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:] = self.handlers, self.dims
        store._params, store._constraints, store._param_to_name = self.contents
        ContextPatches.leave_all_but(self.patches)
        for put, value in self.settings:
            put(value)


def _set_interrupts(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (generator_states, set_generator_states),
    (python_generator_states, set_python_generator_states),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (dist.is_validation_enabled, dist.enable_validation),
    (infer.is_validation_enabled, infer.enable_validation),
    (poutine.is_validation_enabled, poutine.enable_validation),
    (partial(signal.getsignal, signal.SIGINT), _set_interrupts),
]


@contextmanager
def pyro_in_turn() -> Iterator[None]:
    """Use Pyro alone for a block.

    After an error all is as before it.

    Threads that run programs take turns, block by block. An interruption inside one of Pyro's
    handlers would otherwise leave it, and its dimensions, to whatever runs next.
    """
    with PYRO_LOCK:
        kept = Kept()
        try:
            yield
        except GeneratorExit:  # of a block left half exited: whoever is outside has put back
            raise
        except BaseException as error:
            end_half_exits(error)  # before all is put back, since they too put back something
            kept.put_back()
            raise


@contextmanager
def deferred_interrupts(most: float = 1) -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C during a block.

    The function that is yielded tells whether it came. A second Ctrl-C stops at once, or one more
    than `most`.

    Only the main thread is interrupted, and only where nobody else has asked for interrupts.

    Example:
        >>> with deferred_interrupts() as interrupted:
        ...     interrupted()
        False
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    came: list[int] = []

    def hold(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > most:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def import_dynamo() -> None:
    """Import a part of torch whole, whatever comes.

    Torch imports it at the first optimiser or vectorised run. Interrupted there, it would stay half
    imported, and break all that follows.
    """
    if "torch._dynamo" in sys.modules:
        return
    with deferred_interrupts(most=math.inf) as interrupted:
        import_module("torch._dynamo")
    if interrupted():
        raise KeyboardInterrupt
