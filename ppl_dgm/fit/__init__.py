"""Fitting programs to data."""

from ppl_dgm.fit.fit import fit
from ppl_dgm.fit.result import Fit, NonFiniteError

__all__ = ["Fit", "NonFiniteError", "fit"]
