"""Fitting programs to data."""

from ppl_dgm.fitting.callbacks import Callback, CSVLog, Log, Progress, TensorBoard
from ppl_dgm.fitting.entry import fit
from ppl_dgm.fitting.result import Fit, NonFiniteError

__all__ = [
    "CSVLog",
    "Callback",
    "Fit",
    "Log",
    "NonFiniteError",
    "Progress",
    "TensorBoard",
    "fit",
]
