"""Invertible transforms that Pyro lacks.

There is also one way to reach those that Pyro has.
"""

from ppl_dgm.transforms.bijection import (
    Bijection,
    Inverse,
    call_and_log_det,
    condition_all,
    inverse_and_log_det,
    is_foreign,
    may_fold,
    pull,
    push,
)
from ppl_dgm.transforms.continuous import Continuous
from ppl_dgm.transforms.distribution import FlowDistribution, Held
from ppl_dgm.transforms.images import Chain, MultiScale, Squeeze, check_halvings
from ppl_dgm.transforms.layers import (
    COUPLING_LOG_SCALE,
    Coupling,
    Elementwise,
    ImageCoupling,
    MaskedAutoregressive,
    checkerboard,
    half_channels,
)
from ppl_dgm.transforms.linear import ActNorm, BatchNorm, LULinear, Permutation, starting
from ppl_dgm.transforms.planar import Planar, Radial, Sylvester
from ppl_dgm.transforms.scalar import Affine, LogisticMixture, ScalarMap, Shift, Spline
from ppl_dgm.transforms.solving import bracket, solve_increasing

__all__ = [
    "COUPLING_LOG_SCALE",
    "ActNorm",
    "Affine",
    "BatchNorm",
    "Bijection",
    "Chain",
    "Continuous",
    "Coupling",
    "Elementwise",
    "FlowDistribution",
    "Held",
    "ImageCoupling",
    "Inverse",
    "LULinear",
    "LogisticMixture",
    "MaskedAutoregressive",
    "MultiScale",
    "Permutation",
    "Planar",
    "Radial",
    "ScalarMap",
    "Shift",
    "Spline",
    "Squeeze",
    "Sylvester",
    "bracket",
    "call_and_log_det",
    "check_halvings",
    "checkerboard",
    "condition_all",
    "half_channels",
    "inverse_and_log_det",
    "is_foreign",
    "may_fold",
    "pull",
    "push",
    "solve_increasing",
    "starting",
]
