"""Problems of known evidence that the literature or other libraries' tests have."""

from ppl_dgm.data.problems import Problem as Case
from ppl_dgm.data.problems import load as case
from ppl_dgm.data.problems.problem import FLOAT, normal, tensor, uniform
from ppl_dgm.data.problems.published import published, sleep

__all__ = ["CASES", "FLOAT", "Case", "case", "normal", "sleep", "tensor", "uniform"]

CASES = {found.name: found for found in published()}
