"""One switch between running as written and running compiled."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.inductor import cost
from ppl_dgm.compile.inductor.backend import Backend, Compiled, compile_function
from ppl_dgm.compile.inductor.checking import WrongNumbersError
from ppl_dgm.compile.specialisations import Versions
from ppl_dgm.compile.tracing.pytrees import leaves_and_rest, looks
from ppl_dgm.watching import compiling

__all__ = ["CompileMode", "Switch", "check_compile"]

CompileMode = Literal["auto"] | bool
TRIALS = 3  # calls that are timed before deciding

_LOG = logging.getLogger("ppl_dgm.compile")


def check_compile(mode: Any) -> None:
    """Raise ValueError for an unknown compile mode."""
    if not (isinstance(mode, bool) or (isinstance(mode, str) and mode == "auto")):
        raise ValueError(f"compile is {mode!r}; expected 'auto', True or False")


class Switch:
    """Switch between eager and compiled execution of functions.

    The results are the same to rounding.

    With `"auto"` a function runs as written until it is seen that compiling pays for what is left
    to do, which is taken to be as much as has been done where nobody says. What cannot be compiled
    stays as written, with a line in the log. With True everything is compiled at once, and an error
    is raised where that fails.

    Args:
        mode: `"auto"`, True or False.
        backend: as in `compile_function`.

    Raises:
        ValueError: for another mode.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import Switch
        >>> Switch("auto")(torch.add, torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, mode: CompileMode, backend: Backend = "inductor") -> None:
        check_compile(mode)
        self.mode = mode
        self.backend: Backend = backend
        self._compiled = Versions[Compiled](lambda compiled: compiled.captured)
        self._taken: dict[Any, tuple[float, int]] = {}
        self._refused: set[Any] = set()
        self._too_little: dict[Any, float] = {}

    def __call__(self, fn: Callable[..., Any], *inputs: Any, left: int | None = None) -> Any:
        """Evaluate `fn(*inputs)`, eagerly or compiled.

        The inputs are nested tensors. Other leaves among them are held fixed.

        Functions and leaves are told apart as Python compares them: hand the same function, or the
        same method of the same object, from call to call.

        Args:
            fn: the function.
            *inputs: its arguments.
            left: how many such calls are still to come, where that is known.

        Raises:
            CaptureError: in mode True, for what cannot be compiled, or would be compiled for ever
                because a module that runs is set differently from call to call.
        """
        if self.mode is False:
            return fn(*inputs)
        leaves, rest = leaves_and_rest(inputs)
        key = (fn, looks(leaves), rest)
        compiled = None if key in self._refused else self._compiled.find(key)
        if compiled is None:
            return self._first(fn, inputs, key, left)
        try:
            return compiled(*inputs)
        except WrongNumbersError as error:
            self._refuse(key, error)
            return fn(*inputs)

    def _first(
        self, fn: Callable[..., Any], inputs: Any, key: tuple[Any, ...], left: int | None
    ) -> Any:
        allowed = self._allowed(key, left)
        if allowed > 0:
            try:
                with compiling(), cost.compiling_within(allowed):
                    make = partial(compile_function, fn, inputs, backend=self.backend)
                    compiled = self._compiled.add(key, make)
                return compiled(*inputs)
            except cost.TooCostlyError:
                self._too_little[key] = allowed
            except CaptureError as error:
                self._refuse(key, error)
        start = time.perf_counter()
        result = fn(*inputs)
        seconds, calls = self._taken.get(key, (0.0, 0))
        self._taken[key] = seconds + time.perf_counter() - start, calls + 1
        return result

    def _refuse(self, key: tuple[Any, ...], error: CaptureError) -> None:
        """Leave a function uncompiled from now on.

        It is an error where the function must be compiled.
        """
        if self.mode is True:
            raise error
        _LOG.warning("not compiled: %s", str(error).splitlines()[0])
        self._refused.add(key)

    def _allowed(self, key: tuple[Any, ...], left: int | None) -> float:
        """Return how many seconds a compilation may take now.

        A graph that was too costly is captured again once there is twice as much to save.
        """
        if self.mode is True:
            return math.inf
        seconds, calls = self._taken.get(key, (0.0, 0))
        if key in self._refused or calls < TRIALS:
            return 0.0
        saved = cost.saving(seconds if left is None else left * seconds / calls)
        return saved if saved > 2 * self._too_little.get(key, 0.0) else 0.0
