"""Capture once, run compiled: a function that runs Pyro programs becomes a static graph and then machine code."""

from ppl_dgm.compile.backend import Backend, Compiled, cache_folder, compile_captured, compile_function
from ppl_dgm.compile.capture import Captured, capture
from ppl_dgm.compile.density import compile_density, value_and_gradient
from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.loops import Loop, compile_loop
from ppl_dgm.compile.losses import differentiable_loss
from ppl_dgm.compile.train import TrainStep

__all__ = [
    "Backend",
    "CaptureError",
    "Captured",
    "Compiled",
    "Loop",
    "TrainStep",
    "cache_folder",
    "capture",
    "compile_captured",
    "compile_density",
    "compile_function",
    "compile_loop",
    "differentiable_loss",
    "value_and_gradient",
]
