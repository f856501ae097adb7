"""Programs: Pyro model/guide pairs as torch modules.

They are checked, and evaluated over many particles at once.
"""

from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.handlers import Prior
from ppl_dgm.program.inspection import inspect
from ppl_dgm.program.particles import Draw, LogJoint
from ppl_dgm.program.program import Program
from ppl_dgm.program.structure import DensityKind, Latent, Structure

__all__ = [
    "Bound",
    "DensityKind",
    "Draw",
    "Latent",
    "LogJoint",
    "Prior",
    "Program",
    "Structure",
    "inspect",
]
