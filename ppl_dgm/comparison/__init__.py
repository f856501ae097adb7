"""Comparison of programs by their evidence.

One table holds paired differences, Bayes factors and stacking weights.
"""

from ppl_dgm.comparison.comparison import Comparison, compare
from ppl_dgm.comparison.rows import BayesFactor, Row

__all__ = ["BayesFactor", "Comparison", "Row", "compare"]
