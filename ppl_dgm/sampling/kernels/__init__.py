"""Markov transitions and the adaptation of their settings.

They are vectorised over chains and data.
"""

from ppl_dgm.sampling.kernels.adaptation import DualAveraging
from ppl_dgm.sampling.kernels.gibbs import Gibbs
from ppl_dgm.sampling.kernels.metropolis import HMC, MALA, ULA, Kernel, Move, RandomWalk
from ppl_dgm.sampling.kernels.targets import State, Target

__all__ = [
    "HMC",
    "MALA",
    "ULA",
    "DualAveraging",
    "Gibbs",
    "Kernel",
    "Move",
    "RandomWalk",
    "State",
    "Target",
]
