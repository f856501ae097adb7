"""Comparing programs by their evidence: one table, paired differences, Bayes factors, stacking weights."""

from ppl_dgm.comparison.comparison import Comparison, compare
from ppl_dgm.comparison.rows import BayesFactor, Row

__all__ = ["BayesFactor", "Comparison", "Row", "compare"]
