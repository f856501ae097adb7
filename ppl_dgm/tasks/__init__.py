"""Tasks for fitted programs.

They are completing, denoising, conditioning, reconstructing, interpolating and detecting anomalies.
"""

from ppl_dgm.sampling.decoding import decode
from ppl_dgm.tasks.completion import Completion, complete
from ppl_dgm.tasks.conditioning import Marginal, log_conditional, log_marginal
from ppl_dgm.tasks.decoding import interpolate, reconstruct
from ppl_dgm.tasks.denoising import denoise
from ppl_dgm.tasks.detection import Detection, detect

__all__ = [
    "Completion",
    "Detection",
    "Marginal",
    "complete",
    "decode",
    "denoise",
    "detect",
    "interpolate",
    "log_conditional",
    "log_marginal",
    "reconstruct",
]
