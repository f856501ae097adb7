"""Fitting programs to data."""

from ppl_dgm.fitting.bar import ProgressBar
from ppl_dgm.fitting.callbacks import (
    Callback,
    CSVLog,
    EarlyStopping,
    Log,
    Progress,
    TensorBoard,
)
from ppl_dgm.fitting.checkpoint import CheckpointFile
from ppl_dgm.fitting.entry import fit
from ppl_dgm.fitting.result import Fit, NonFiniteError

__all__ = [
    "CSVLog",
    "Callback",
    "CheckpointFile",
    "EarlyStopping",
    "Fit",
    "Log",
    "NonFiniteError",
    "Progress",
    "ProgressBar",
    "TensorBoard",
    "fit",
]
