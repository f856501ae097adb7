"""Estimators of the evidence: how probable a program makes its data, with an error and a statement of what it is."""

from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.auto import auto
from ppl_dgm.evidence.base import Estimate, Estimator, Evidence
from ppl_dgm.evidence.bdmc import BDMC, Sandwich
from ppl_dgm.evidence.bounds import CUBO, JVI, SUMO
from ppl_dgm.evidence.bridge import BridgeSampling, bridge_iteration
from ppl_dgm.evidence.exact import Exact
from ppl_dgm.evidence.grid import GridSampling
from ppl_dgm.evidence.harmonic import HarmonicMean, LearnedHarmonicMean
from ppl_dgm.evidence.importance import ELBO, ImportanceSampling, PriorSampling
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.moves import check_moves
from ppl_dgm.evidence.nested import NestedSampling
from ppl_dgm.evidence.savage_dickey import BayesFactor, savage_dickey
from ppl_dgm.evidence.smc import SMC
from ppl_dgm.evidence.thermodynamic import SteppingStone, ThermodynamicIntegration

__all__ = [
    "AIS",
    "BDMC",
    "CUBO",
    "ELBO",
    "JVI",
    "SMC",
    "SUMO",
    "BayesFactor",
    "BridgeSampling",
    "Estimate",
    "Estimator",
    "Evidence",
    "Exact",
    "GridSampling",
    "HarmonicMean",
    "ImportanceSampling",
    "Laplace",
    "LearnedHarmonicMean",
    "NestedSampling",
    "PriorSampling",
    "Sandwich",
    "SteppingStone",
    "ThermodynamicIntegration",
    "auto",
    "bridge_iteration",
    "check_moves",
    "savage_dickey",
]
