"""What the processor's vector instructions are, without compiling test programs."""

import platform
import subprocess
import sys
from functools import cache

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.cpu_vec_isa import supported_vec_isa_list, x86_isa_checker


@cache
def vectors_are_known() -> bool | None:
    """Return True where torch uses this processor's widest vectors and the compiler takes their flags, else None.

    Inductor (`cpp.vec_isa_ok`) compiles and loads a program for each kind of vector, which takes seconds in every fresh
    cache folder. torch knows what its own kernels run with, and asking the compiler takes hundredths of a second.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"):
        return None
    present = set(x86_isa_checker())
    kinds = [kind for kind in supported_vec_isa_list if set(str(kind).split()) <= present]
    widest = "avx512" not in present or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return True if kinds and widest and all(_takes(kind.build_arch_flags()) for kind in kinds) else None


def _takes(flags: str) -> bool:
    command = [get_cpp_compiler(), *flags.split(), "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0
