"""What fits maximise; see `Objective` for how to add one.

How to choose, by what the guide draws:

- nothing (no latents, or all summed out by enumeration): `ELBO()` is the log likelihood itself.
- latents with a path gradient (Normal, flows): `ELBO()` first; near convergence
  `ELBO(gradient="stl")` has less noise. `IWELBO(K, gradient="dreg")` fits the model to a tighter
  bound, and leaves a guide that is a good proposal rather than a good approximation; `MIWAE` and
  `CIWAE` lie between the two. `Renyi` covers more (alpha < 1) or less of the posterior.
- latents that collapse to the prior: `ELBO(kl_weight=linear_warmup(n))`, or `FreeBits`.
- an encoder that is too weak: `SemiAmortised(k, rate)` refines what it says before the bound is
  taken.
- dimensions that should be independent: `BetaTC`, or `ELBO(kl_weight=4.0)`, the beta-VAE.
- a few discrete latents: sum them out (`infer={"enumerate": "parallel"}`, left out of the guide).
- many discrete latents: `VIMCO(K)` or `ReweightedWakeSleep(K)` for the importance-weighted bound,
  `RLOO(K)` for the ELBO; `REINFORCE` with a baseline where a second particle costs too much;
  `StraightThrough` where the program is differentiable in them and a bias of the guide's gradient
  is tolerable.
- a density that is unnormalised (an RBM, an energy net): `PersistentContrastiveDivergence(k)`, or
  `ContrastiveDivergence(k)`, which needs fewer moves and has a bias. Without chains:
  `ScoreMatching` (real data), `PseudoLikelihood` or `RatioMatching` (binary),
  `NoiseContrastive(noise)` where a density near the data's is at hand, `LearnedProposal(flow)`
  where one can be learnt.
- a flow, and a density in place of data: `ReverseKL(target)`, which also distils a slow teacher
  into a fast student; `ForwardKL(target)` where it must not leave modes out.
- nothing that has a density (a generator, `pyro.deterministic("x", ...)`), or samples matter more
  than likelihood: a critic. `GAN(critic)` first, with `r1` or a `gradient_penalty` where it does
  not settle, `pack` where it loses modes; `FGAN` where it should say which divergence it bounds;
  `BiGAN` where the guide should learn to encode; `CycleGAN` for two programs that translate
  unpaired data into each other.
- latents of both kinds: `RLOO`, `REINFORCE`, `VIMCO` and `StraightThrough` keep the path gradient
  of those that have one.
"""

from ppl_dgm.objectives.adversarial import FGAN, GAN
from ppl_dgm.objectives.adversarial_losses import AdversarialLoss
from ppl_dgm.objectives.bigan import BiGAN
from ppl_dgm.objectives.combined import CIWAE, MIWAE
from ppl_dgm.objectives.contrastive import (
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
)
from ppl_dgm.objectives.cyclegan import CycleGAN
from ppl_dgm.objectives.distillation import ForwardKL, ReverseKL
from ppl_dgm.objectives.divergences import Divergence, alpha_divergence, named_divergence
from ppl_dgm.objectives.elbo import ELBO, IWELBO, Renyi
from ppl_dgm.objectives.energies import EnergyObjective
from ppl_dgm.objectives.learned_proposal import LearnedProposal
from ppl_dgm.objectives.noise_contrastive import NoiseContrastive
from ppl_dgm.objectives.objective import Objective, linear_warmup
from ppl_dgm.objectives.players import Game, Goal, Player
from ppl_dgm.objectives.pseudo_likelihood import PseudoLikelihood, RatioMatching
from ppl_dgm.objectives.regularised import BetaTC, FreeBits
from ppl_dgm.objectives.reinforce import REINFORCE, RunningMean
from ppl_dgm.objectives.relaxation import StraightThrough
from ppl_dgm.objectives.rloo import RLOO
from ppl_dgm.objectives.scores import ScoreMatching
from ppl_dgm.objectives.semi_amortised import SemiAmortised
from ppl_dgm.objectives.vimco import VIMCO
from ppl_dgm.objectives.wake_sleep import ReweightedWakeSleep

__all__ = [
    "CIWAE",
    "ELBO",
    "FGAN",
    "GAN",
    "IWELBO",
    "MIWAE",
    "REINFORCE",
    "RLOO",
    "VIMCO",
    "AdversarialLoss",
    "BetaTC",
    "BiGAN",
    "ContrastiveDivergence",
    "CycleGAN",
    "Divergence",
    "EnergyObjective",
    "ForwardKL",
    "FreeBits",
    "Game",
    "Goal",
    "LearnedProposal",
    "NoiseContrastive",
    "Objective",
    "PersistentContrastiveDivergence",
    "Player",
    "PseudoLikelihood",
    "RatioMatching",
    "Renyi",
    "ReverseKL",
    "ReweightedWakeSleep",
    "RunningMean",
    "ScoreMatching",
    "SemiAmortised",
    "StraightThrough",
    "alpha_divergence",
    "linear_warmup",
    "named_divergence",
]
