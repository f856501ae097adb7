"""Compilation of Pyro programs to static graphs and machine code.

A function that runs Pyro programs is captured once and then runs compiled.

What to use: `TrainStep` for optimisation, `compile_density` for a log density and its gradient,
`compile_loop` for thousands of steps of microseconds each, `compile_function` for anything else,
`capture` to look at a graph. All of them raise `CaptureError`, and nothing else, for what a program
does that cannot be compiled; whoever can run eagerly catches it. Progress is logged to
`ppl_dgm.compile` at level INFO; compiled code is kept in `cache_folder()` between runs.
"""

from ppl_dgm.compile.density import compile_density, value_and_gradient
from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.inductor.backend import Backend, Compiled, cache_folder, compile_function
from ppl_dgm.compile.jit import CompileMode, Switch
from ppl_dgm.compile.scan import Loop, compile_loop
from ppl_dgm.compile.tracing.capture import Captured, capture
from ppl_dgm.compile.tracing.differentiable_loop import iterate, row_at
from ppl_dgm.compile.tracing.fori_loop import repeat
from ppl_dgm.compile.tracing.pyro_losses import differentiable_loss
from ppl_dgm.compile.train_step import TrainStep

__all__ = [
    "Backend",
    "CaptureError",
    "Captured",
    "CompileMode",
    "Compiled",
    "Loop",
    "Switch",
    "TrainStep",
    "cache_folder",
    "capture",
    "compile_density",
    "compile_function",
    "compile_loop",
    "differentiable_loss",
    "iterate",
    "repeat",
    "row_at",
    "value_and_gradient",
]
