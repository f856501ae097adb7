"""What the processor's vector instructions are, without compiling test programs."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.cpu_vec_isa import VecISA


@contextmanager
def vectors_by_flags() -> Iterator[None]:
    """Let Inductor ask the compiler whether it takes the flags of vectors that torch has found in the processor.

    By itself it compiles and loads a program for each kind of vector, which takes seconds in every fresh cache folder.
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
    command = [get_cpp_compiler(), *self.build_arch_flags().split(), "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0
