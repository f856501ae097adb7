"""What fits maximise; see `Objective` for how to add one."""

from ppl_dgm.objectives.elbo import ELBO, IWELBO, Renyi
from ppl_dgm.objectives.objective import Objective, linear_warmup

__all__ = ["ELBO", "IWELBO", "Objective", "Renyi", "linear_warmup"]
