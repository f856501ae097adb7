"""Markov transitions and the adaptation of their settings.

They are vectorised over chains and data.
"""

from ppl_dgm.sampling.kernels.adaptation import (
    DualAveraging,
    nudge_step_size,
    robust_scale,
    weighted_scale,
)
from ppl_dgm.sampling.kernels.gibbs import Gibbs
from ppl_dgm.sampling.kernels.metropolis import HMC, MALA, ULA, Kernel, Move, RandomWalk, leapfrog
from ppl_dgm.sampling.kernels.targets import LogDensityGradient, State, Target, power

__all__ = [
    "HMC",
    "MALA",
    "ULA",
    "DualAveraging",
    "Gibbs",
    "Kernel",
    "LogDensityGradient",
    "Move",
    "RandomWalk",
    "State",
    "Target",
    "leapfrog",
    "nudge_step_size",
    "power",
    "robust_scale",
    "weighted_scale",
]
