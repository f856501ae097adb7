"""What fits maximise; see `Objective` for how to add one."""

from ppl_dgm.objectives.discrete import REINFORCE, RLOO, VIMCO, ReweightedWakeSleep, RunningMean, StraightThrough
from ppl_dgm.objectives.elbo import ELBO, IWELBO, Renyi
from ppl_dgm.objectives.objective import Objective, linear_warmup

__all__ = [
    "ELBO",
    "IWELBO",
    "REINFORCE",
    "RLOO",
    "VIMCO",
    "Objective",
    "Renyi",
    "ReweightedWakeSleep",
    "RunningMean",
    "StraightThrough",
    "linear_warmup",
]
