"""Fitting programs to data."""

from ppl_dgm.fitting.entry import fit
from ppl_dgm.fitting.result import Fit, NonFiniteError

__all__ = ["Fit", "NonFiniteError", "fit"]
