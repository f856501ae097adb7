"""Blocks whose exit was interrupted.

Ctrl-C between the end of a `with` block and the code that undoes it leaves a generator waiting. Its
clean-up then runs when its memory is freed, with the exception's: in the middle of a later call.
"""

import contextlib
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

__all__ = ["end_half_exits"]


def end_half_exits(error: BaseException) -> None:
    """End blocks now that an exception left half exited.

    They are held by frames of contextlib, which nobody looks at after an error.
    """
    for frame in _frames_of(error):
        if frame.f_code.co_filename == contextlib.__file__:
            with suppress(RuntimeError):  # of a frame that still runs
                frame.clear()


def _frames_of(error: BaseException) -> Iterator[FrameType]:
    """Frames that an error and its causes passed through."""
    found, seen = error, []
    while found is not None and found not in seen:
        seen.append(found)
        trace, frames = found.__traceback__, []
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        yield from reversed(frames)
        found = found.__context__
