"""Patches that save seconds at every Inductor compilation.

They avoid work on test programs, headers and type rules.
"""

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread

from torch._inductor import config
from torch._inductor.codecache import CppWrapperCodeCache
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.cpu_vec_isa import VecISA
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler

__all__ = ["shortcuts"]


@contextmanager
def shortcuts(on_cpu: bool) -> Iterator[None]:
    """Apply all patches that shorten a compilation.

    Those of C++ are applied only where there is C++ to compile.
    """
    with ExitStack() as stack:
        stack.enter_context(rules_once())
        if on_cpu:
            stack.enter_context(vectors_by_flags())
            stack.enter_context(headers_meanwhile())
        yield


@contextmanager
def rules_once() -> Iterator[None]:
    """Let Inductor build its type rules only once.

    Its one handler is otherwise initialised anew for every operation that it writes.
    """
    usual = DtypePropagationOpsHandler.__init__
    made: list[DtypePropagationOpsHandler] = []

    def first(self: DtypePropagationOpsHandler) -> None:
        if not made:
            usual(self)
            made.append(self)

    DtypePropagationOpsHandler.__init__ = first
    try:
        yield
    finally:
        DtypePropagationOpsHandler.__init__ = usual


@contextmanager
def vectors_by_flags() -> Iterator[None]:
    """Let Inductor check only whether the compiler accepts vector flags.

    The flags are of the vector instructions that torch has found in the processor.

    By itself it compiles and loads a program for each kind of vector, which takes seconds in every
    fresh cache folder.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        yield
        return
    usual = VecISA.check_build
    VecISA.check_build = _takes_flags
    try:
        yield
    finally:
        VecISA.check_build = usual


def _takes_flags(self: VecISA, code: str) -> bool:
    command = [
        get_cpp_compiler(),
        *self.build_arch_flags().split(),
        "-x",
        "c++",
        "-fsyntax-only",
        "-",
    ]
    return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0


@contextmanager
def headers_meanwhile() -> Iterator[None]:
    """Load precompiled headers in a thread while code is generated.

    The headers are torch's. On a new machine they are made first.
    """
    thread = Thread(target=_precompile, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _precompile() -> None:
    with (
        suppress(Exception),
        config.patch(cpp_wrapper=True),
    ):  # what fails here fails again where it is reported
        CppWrapperCodeCache.load_async("", "cpu", needs_vec_isa=True)
