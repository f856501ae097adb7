"""What fitted programs are used for: completing, reconstructing and interpolating data, detecting anomalies."""

from ppl_dgm.tasks.completion import Completion, complete
from ppl_dgm.tasks.decoding import interpolate, reconstruct
from ppl_dgm.tasks.detection import Detection, detect

__all__ = ["Completion", "Detection", "complete", "detect", "interpolate", "reconstruct"]
