"""The C++ headers of generated code, which torch precompiles once on a machine."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from torch._inductor import config
from torch._inductor.codecache import _HEADER_DIR, CppWrapperCodeCache


@contextmanager
def headers_meanwhile() -> Iterator[None]:
    """Where there are none yet, precompile them in a thread: it takes seconds in which Python writes the code."""
    if Path(_HEADER_DIR).is_dir():
        yield
        return
    thread = Thread(target=_precompile, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _precompile() -> None:
    with suppress(Exception), config.patch(cpp_wrapper=True):  # what fails here fails again where it is reported
        CppWrapperCodeCache.load_async("", "cpu", needs_vec_isa=True)
