"""Families of generative models, each a Program: choose one, or put one together of parts."""

from ppl_dgm.families import bayesnet, components, likelihoods, priors
from ppl_dgm.families.autoregressive import MADE
from ppl_dgm.families.bayesian_mixture import BayesianMixture
from ppl_dgm.families.bayesnet import BayesNet, IndependentBernoulli
from ppl_dgm.families.hierarchical import HierarchicalVAE
from ppl_dgm.families.labelled import ConditionalVAE, SemiSupervisedVAE
from ppl_dgm.families.latent_linear import PPCA
from ppl_dgm.families.mixture import Mixture
from ppl_dgm.families.vae import VAE
from ppl_dgm.families.vqvae import VQVAE

__all__ = [
    "MADE",
    "PPCA",
    "VAE",
    "VQVAE",
    "BayesNet",
    "BayesianMixture",
    "ConditionalVAE",
    "HierarchicalVAE",
    "IndependentBernoulli",
    "Mixture",
    "SemiSupervisedVAE",
    "bayesnet",
    "components",
    "likelihoods",
    "priors",
]
