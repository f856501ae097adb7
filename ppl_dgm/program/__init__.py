"""Programs: Pyro model/guide pairs as torch modules.

They are checked, and evaluated over many particles at once.
"""

from ppl_dgm.program.arguments import call_signature, move_data, select_data, tensors_of
from ppl_dgm.program.bound_program import Bound
from ppl_dgm.program.data_argument import DataArgument
from ppl_dgm.program.identity import difference, identify
from ppl_dgm.program.inspection import inspect
from ppl_dgm.program.isolation import evaluating, undisturbed
from ppl_dgm.program.ladder import Ladder, ladder_of
from ppl_dgm.program.log_likelihoods import log_likelihoods
from ppl_dgm.program.particles import Draw, LogJoint
from ppl_dgm.program.plates import data_size
from ppl_dgm.program.prior import Prior
from ppl_dgm.program.program import Program
from ppl_dgm.program.pyro_patches import unvalidated
from ppl_dgm.program.sampling import draw_sites
from ppl_dgm.program.storage import (
    check_space,
    check_target,
    read_state,
    remove_leftovers,
    write_bytes,
    write_state,
)
from ppl_dgm.program.structure import DensityKind, Latent, Structure

__all__ = [
    "Bound",
    "DataArgument",
    "DensityKind",
    "Draw",
    "Ladder",
    "Latent",
    "LogJoint",
    "Prior",
    "Program",
    "Structure",
    "call_signature",
    "check_space",
    "check_target",
    "data_size",
    "difference",
    "draw_sites",
    "evaluating",
    "identify",
    "inspect",
    "ladder_of",
    "log_likelihoods",
    "move_data",
    "read_state",
    "remove_leftovers",
    "select_data",
    "tensors_of",
    "undisturbed",
    "unvalidated",
    "write_bytes",
    "write_state",
]
