"""Estimators of the evidence, with errors and bounds.

The evidence says how probable a program makes its data. Each estimate has an error and a statement
of what it is.

Start with `auto(program, *data)`: it is exact where it can be, and elsewhere two kinds of estimator
must agree. To choose yourself, go down this list; costs are evaluations of the joint density for
each datum (or for the data set), a gradient counting as three.

- No latents, finite ones, or all Gaussian: `Exact`, the number itself. 1, times the values summed.
- Few weak data: `PriorSampling`; no tuning, ESS tells when it fails. K.
- A guide: `ImportanceSampling`, a lower bound in expectation, Pareto k tells when it fails;
  `ELBO`, `IWELBO` below, `CUBO` above, `JVI`, `SUMO` without its bias. K.
- No guide, few dimensions: `Laplace`, modes from several starts, corrected by importance sampling,
  up to about 20 dimensions; `AdaptiveImportanceSampling`, mixtures that follow bent posteriors.
  starts * steps * 4 + K. `FlowImportanceSampling`, funnels and thin valleys in up to 50 dimensions.
  steps * draws * 3 + K.
- Posterior draws: `BridgeSampling`, the most precise for its cost to 100 dimensions and more. 20
  for each draw with its own chains, 8 with yours, whose densities alone it evaluates.
- One datum, one posterior (decoders): `AIS` from the prior or the guide, many data and chains at
  once, and a lower bound; `BDMC` brackets it on simulated data. 3 * chains * temperatures *
  leapfrogs.
- An unnormalised density (`RBM`, `Energy`): `AIS` and `SMC` to its partition function, `ReverseAIS`
  from the other side, `BDMC` for both. As AIS, twice that.
- Many modes: `SMC`, whose particles keep modes in proportion. 25 temperatures * moves * leapfrogs *
  3 * K. In up to ten dimensions, and where narrow peaks hide in wide ones, `NestedSMC`. 25 levels *
  moves * K. `NestedSampling` is dynesty's, one run of the program at a time.
- A point hypothesis: `savage_dickey`, one posterior for both models. As its chains.
- Few discrete latents: `GridSum`, all their values, counts up to a tail that is told.
- Finite latents, too many: `GridSampling`, the naive sum by Monte Carlo. K.
- Counts without limit: `WideSampling`, prior sampling with a far wider proposal. K.
- The bound over m, as a table and a plot: `over_particles`. replicates * the sum of m.
- Levels with noise: `over_noise`, a lower bound of their probability. Draws of the noise.

Then believe it only as far as it was tested: `Evidence.warnings` is empty, a second kind of
estimator agrees within the errors, and for lower bounds `BDMC` shows the gap. Not one of
`HarmonicMean` (infinite variance; use `LearnedHarmonicMean` with the same draws), one chain from
one start (`BridgeSampling` tries mirrored modes and warns by R-hat), or a guide narrower than the
posterior (`pareto_k` above 0.7).
"""

from ppl_dgm.evidence.adaptive import AdaptiveImportanceSampling
from ppl_dgm.evidence.annealed import AIS
from ppl_dgm.evidence.auto import auto
from ppl_dgm.evidence.base import Estimator
from ppl_dgm.evidence.bdmc import BDMC
from ppl_dgm.evidence.bridge import BridgeSampling
from ppl_dgm.evidence.check_moves import check_moves
from ppl_dgm.evidence.cubo import CUBO
from ppl_dgm.evidence.estimate import Estimate
from ppl_dgm.evidence.exact import Exact
from ppl_dgm.evidence.flow_importance import FlowImportanceSampling
from ppl_dgm.evidence.grid import GridSampling, GridSum
from ppl_dgm.evidence.harmonic import HarmonicMean, LearnedHarmonicMean
from ppl_dgm.evidence.importance import ELBO, ImportanceSampling, PriorSampling
from ppl_dgm.evidence.iwelbo import IWELBO
from ppl_dgm.evidence.jvi import JVI
from ppl_dgm.evidence.laplace import Laplace
from ppl_dgm.evidence.nested import NestedSampling
from ppl_dgm.evidence.nested_smc import NestedSMC
from ppl_dgm.evidence.noise import over_noise
from ppl_dgm.evidence.over_particles import BoundCurve, over_particles
from ppl_dgm.evidence.result import Evidence
from ppl_dgm.evidence.reverse import ReverseAIS
from ppl_dgm.evidence.sandwich import Sandwich
from ppl_dgm.evidence.savage_dickey import SavageDickey, savage_dickey
from ppl_dgm.evidence.smc import SMC
from ppl_dgm.evidence.sumo import SUMO
from ppl_dgm.evidence.thermodynamic import SteppingStone, ThermodynamicIntegration
from ppl_dgm.evidence.widened import WideSampling

__all__ = [
    "AIS",
    "BDMC",
    "CUBO",
    "ELBO",
    "IWELBO",
    "JVI",
    "SMC",
    "SUMO",
    "AdaptiveImportanceSampling",
    "BoundCurve",
    "BridgeSampling",
    "Estimate",
    "Estimator",
    "Evidence",
    "Exact",
    "FlowImportanceSampling",
    "GridSampling",
    "GridSum",
    "HarmonicMean",
    "ImportanceSampling",
    "Laplace",
    "LearnedHarmonicMean",
    "NestedSMC",
    "NestedSampling",
    "PriorSampling",
    "ReverseAIS",
    "Sandwich",
    "SavageDickey",
    "SteppingStone",
    "ThermodynamicIntegration",
    "WideSampling",
    "auto",
    "check_moves",
    "over_noise",
    "over_particles",
    "savage_dickey",
]
