"""Capture once, run compiled: a function that runs Pyro programs becomes a static graph and then machine code."""

from ppl_dgm.compile.capture import Captured, capture
from ppl_dgm.compile.errors import CaptureError

__all__ = ["CaptureError", "Captured", "capture"]
