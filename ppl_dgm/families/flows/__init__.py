"""Normalising flows: invertible transforms of noise, with exact densities and draws."""

from ppl_dgm.families.flows.dequantised import Dequantised, UniformNoise, VariationalNoise
from ppl_dgm.families.flows.flow import Flow
from ppl_dgm.families.flows.images import FlowPlusPlus, Glow
from ppl_dgm.families.flows.vectors import FFJORD, IAF, MAF, NICE, NSF, PlanarFlow, RealNVP

__all__ = [
    "FFJORD",
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "Dequantised",
    "Flow",
    "FlowPlusPlus",
    "Glow",
    "PlanarFlow",
    "RealNVP",
    "UniformNoise",
    "VariationalNoise",
]
