"""Estimators of the evidence: how probable a program makes its data, with an error and a statement of what it is."""

from ppl_dgm.evidence.base import Estimate, Estimator, Evidence

__all__ = ["Estimate", "Estimator", "Evidence"]
