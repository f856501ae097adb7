"""Estimators of the evidence: how probable a program makes its data, with an error and a statement of what it is."""

from ppl_dgm.evidence.auto import auto
from ppl_dgm.evidence.base import Estimate, Estimator, Evidence
from ppl_dgm.evidence.bounds import CUBO, JVI, SUMO
from ppl_dgm.evidence.bridge import BridgeSampling, bridge_iteration
from ppl_dgm.evidence.exact import Exact
from ppl_dgm.evidence.grid import GridSampling
from ppl_dgm.evidence.harmonic import HarmonicMean, LearnedHarmonicMean
from ppl_dgm.evidence.importance import ELBO, ImportanceSampling, PriorSampling
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.nested import NestedSampling
from ppl_dgm.evidence.savage_dickey import BayesFactor, savage_dickey

__all__ = [
    "CUBO",
    "ELBO",
    "JVI",
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
    "auto",
    "bridge_iteration",
    "savage_dickey",
]
