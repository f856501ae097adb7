"""Invertible transforms that Pyro lacks.

There is also one way to reach those that Pyro has.
"""

from ppl_dgm.transforms.bijection import Bijection, Inverse
from ppl_dgm.transforms.continuous import Continuous
from ppl_dgm.transforms.distribution import FlowDistribution
from ppl_dgm.transforms.images import Chain, MultiScale, Squeeze
from ppl_dgm.transforms.layers import (
    Coupling,
    Elementwise,
    ImageCoupling,
    MaskedAutoregressive,
    checkerboard,
)
from ppl_dgm.transforms.linear import ActNorm, BatchNorm, LULinear, Permutation
from ppl_dgm.transforms.planar import Planar, Radial, Sylvester
from ppl_dgm.transforms.scalar import Affine, LogisticMixture, ScalarMap, Shift, Spline

__all__ = [
    "ActNorm",
    "Affine",
    "BatchNorm",
    "Bijection",
    "Chain",
    "Continuous",
    "Coupling",
    "Elementwise",
    "FlowDistribution",
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
    "checkerboard",
]
