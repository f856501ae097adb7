"""Normalising flows: invertible transforms of noise.

Densities and draws are exact.
"""

from ppl_dgm.families.flows.dequantised import Dequantised, UniformNoise, VariationalNoise
from ppl_dgm.families.flows.flow import Flow
from ppl_dgm.families.flows.images import FlowPlusPlus, Glow
from ppl_dgm.families.flows.simple import AffineFlow, MixtureCDFFlow, RadialFlow
from ppl_dgm.families.flows.vectors import FFJORD, IAF, MAF, NICE, NSF, PlanarFlow, RealNVP

__all__ = [
    "FFJORD",
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "AffineFlow",
    "Dequantised",
    "Flow",
    "FlowPlusPlus",
    "Glow",
    "MixtureCDFFlow",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "UniformNoise",
    "VariationalNoise",
]
