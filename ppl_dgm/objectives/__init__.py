"""What fits maximise; see `Objective` for how to add one."""

from ppl_dgm.objectives.combined import CIWAE, MIWAE
from ppl_dgm.objectives.discrete import REINFORCE, RLOO, VIMCO, ReweightedWakeSleep, RunningMean
from ppl_dgm.objectives.elbo import ELBO, IWELBO, Renyi
from ppl_dgm.objectives.objective import Objective, linear_warmup
from ppl_dgm.objectives.regularised import BetaTC, FreeBits
from ppl_dgm.objectives.relaxation import StraightThrough

__all__ = [
    "CIWAE",
    "ELBO",
    "IWELBO",
    "MIWAE",
    "REINFORCE",
    "RLOO",
    "VIMCO",
    "BetaTC",
    "FreeBits",
    "Objective",
    "Renyi",
    "ReweightedWakeSleep",
    "RunningMean",
    "StraightThrough",
    "linear_warmup",
]
