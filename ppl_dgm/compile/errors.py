"""Compilation errors that point to the user's line of code."""

import traceback
from pathlib import Path

import pyro
import torch

__all__ = ["NUMBER_CURE", "CaptureError", "refusal", "user_line"]

_LIBRARIES = tuple(str(Path(package.__file__ or "").parent) for package in (torch, pyro))
_LAYER = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)
NUMBER_CURE = (
    "What Python draws or counts would be frozen at capture: draw with torch or pyro.sample, keep "
    "counts and schedules in a buffer of a module, updated in place, or run with compile=False."
)
_GENERATED = ("<frozen ", "<string>", "<eval_with_key>", "<__array_function__")


class CaptureError(RuntimeError):
    """Error for a function that cannot be captured or compiled.

    The message names the line, the sample site where it is known, and the remedy.

    Everything in this layer that fails because of *what the program does* raises this one error, so
    that a caller who can also run eagerly catches it and falls back.

    Example:
        >>> import torch
        >>> from ppl_dgm.compile import CaptureError, capture
        >>> try:
        ...     capture(lambda x: x if x.sum() > 0 else -x, (torch.ones(2),))
        ... except CaptureError as error:
        ...     print("__bool__" in str(error))
        True
    """


def user_line(stack: traceback.StackSummary) -> str:
    """Return the user's innermost line of code in a stack.

    It is given as `file:line` and source. Its frame belongs neither to a library nor to this
    package.
    """
    outside = [
        frame
        for frame in stack
        if not frame.filename.startswith((*_LIBRARIES, _LAYER, *_GENERATED))
    ]
    users = [frame for frame in outside if not frame.filename.startswith(_PACKAGE)]
    frames = users or outside
    if not frames:
        return "an unknown line"
    return f"{frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`"


def refusal(what: str, cure: str, site: str | None, stack: traceback.StackSummary) -> CaptureError:
    """Compose the error for a program that cannot be compiled.

    It tells what the program does, where (line and sample site), and what to do instead.
    """
    where = user_line(stack) + (f", in site {site}" if site else "")
    return CaptureError(f"the program {what} at {where}. {cure}")
