"""Families with unnormalised densities: restricted Boltzmann machines and energy nets."""

from ppl_dgm.families.energy.ebm import Energy
from ppl_dgm.families.energy.rbm import RBM

__all__ = ["RBM", "Energy"]
