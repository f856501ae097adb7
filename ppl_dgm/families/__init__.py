"""Families of generative models, each a Program.

Choose one, or put one together from parts.

Many models of the literature are combinations, of a family with its parts here and with an
objective elsewhere:

    naive Bayes, Markov chain       bayesnet.naive_bayes(...), bayesnet.markov_chain(...)
    Chow-Liu tree                   bayesnet.chow_liu(x)
    latent class analysis           Mixture(D, K, "bernoulli")
    RNADE                           NADE(D, H, likelihoods.MixtureDensity(K))
    EoNADE                          NADE(D, H, orders=K), or MADE(D, hidden=[H], orders=K)
    sigmoid belief net              VAE(D, L, [], prior=priors.BernoulliPrior(L),
                                        guide=guides.BernoulliPosterior(L))
    GMVAE                           VAE(D, L, prior=priors.GaussianMixturePrior(L, K))
    VampPrior VAE                   VAE(D, L, prior=priors.VampPrior(guide, x[:K]), guide=guide)
    VAE with inverse AR flow        VAE(D, L, guide=guides.FlowPosterior(L, "iaf"))
    IWAE, one or two layers         VAE or HierarchicalVAE, fitted with IWELBO(k)
    beta-VAE                        VAE, fitted with ELBO(kl_weight=beta)
    MIWAE for missing data          VAE called with (x, observed), fitted with IWELBO(k)
    harmonium                       RBM(D, H), fitted with ContrastiveDivergence(k)
    M2                              SemiSupervisedVAE, fitted with pyro.infer.TraceEnum_ELBO
    flow of whole numbers           Dequantised(RealNVP(D), levels),
                                    or with VariationalNoise(D, levels)
    GAN                             Generator, fitted with GAN(critic) or FGAN(critic)
    SVI per datum, semi-amortised   any VAE, through amortisation.refine
"""

from ppl_dgm.conditionals import components, likelihoods, priors
from ppl_dgm.families import bayesnet
from ppl_dgm.families.autoregressive import (
    DARN,
    FVSBN,
    MADE,
    NADE,
    GatedPixelCNN,
    MultiscalePixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    PixelSNAIL,
    PixelTransformer,
    RecurrentNet,
    WaveNet,
)
from ppl_dgm.families.bayesnet import BayesNet, IndependentBernoulli
from ppl_dgm.families.energy import RBM, Energy
from ppl_dgm.families.flows import (
    FFJORD,
    IAF,
    MAF,
    NICE,
    NSF,
    AffineFlow,
    Dequantised,
    Flow,
    FlowPlusPlus,
    Glow,
    MixtureCDFFlow,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    UniformNoise,
    VariationalNoise,
)
from ppl_dgm.families.implicit import Generator
from ppl_dgm.families.latent.hierarchical import HierarchicalVAE
from ppl_dgm.families.latent.labelled import ConditionalVAE, SemiSupervisedVAE
from ppl_dgm.families.latent.ppca import PPCA
from ppl_dgm.families.latent.vae import VAE
from ppl_dgm.families.latent.vqvae import VQVAE
from ppl_dgm.families.mixtures.bayesian import BayesianMixture, NormalInverseWishart
from ppl_dgm.families.mixtures.mixture import Mixture

__all__ = [
    "DARN",
    "FFJORD",
    "FVSBN",
    "IAF",
    "MADE",
    "MAF",
    "NADE",
    "NICE",
    "NSF",
    "PPCA",
    "RBM",
    "VAE",
    "VQVAE",
    "AffineFlow",
    "BayesNet",
    "BayesianMixture",
    "ConditionalVAE",
    "Dequantised",
    "Energy",
    "Flow",
    "FlowPlusPlus",
    "GatedPixelCNN",
    "Generator",
    "Glow",
    "HierarchicalVAE",
    "IndependentBernoulli",
    "Mixture",
    "MixtureCDFFlow",
    "MultiscalePixelCNN",
    "NormalInverseWishart",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelSNAIL",
    "PixelTransformer",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "RecurrentNet",
    "SemiSupervisedVAE",
    "UniformNoise",
    "VariationalNoise",
    "WaveNet",
    "bayesnet",
    "components",
    "likelihoods",
    "priors",
]
