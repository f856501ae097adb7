"""Constructors of the package, each with settings that are right."""

from typing import Any

import torch
from torch import nn

from ppl_dgm import evidence, families, kernels, objectives
from ppl_dgm.conditionals import components, guides, likelihoods, priors, tables
from ppl_dgm.data import densities
from ppl_dgm.families import bayesnet
from ppl_dgm.nn import MLP, ConvDecoder, ConvEncoder, MADENet, ResidualMLP
from ppl_dgm.transforms import continuous, layers, linear, planar, scalar

THREE = {"num_dims": 3}
IMAGE: dict[str, Any] = {"shape": (1, 4, 4)}
NET = nn.Linear(2, 3)

RIGHT: dict[Any, dict[str, Any]] = {
    # families
    families.AffineFlow: THREE,
    families.BayesianMixture: {**THREE, "num_components": 2},
    families.ConditionalVAE: {**THREE, "num_latents": 2, "num_classes": 3},
    families.DARN: THREE,
    families.Dequantised: {"flow": families.NICE(4), "levels": 4},
    families.FFJORD: THREE,
    families.FVSBN: THREE,
    families.FlowPlusPlus: {"image_shape": (1, 4, 4), "width": 4},
    families.GatedPixelCNN: IMAGE,
    families.Generator: {**THREE, "net": NET, "num_latents": 2},
    families.Glow: {"image_shape": (1, 4, 4), "hidden": (4,), "length": 1},
    families.HierarchicalVAE: THREE,
    families.IAF: THREE,
    families.IndependentBernoulli: THREE,
    families.MADE: THREE,
    families.MAF: THREE,
    families.Mixture: {**THREE, "num_components": 2},
    families.MixtureCDFFlow: THREE,
    families.NADE: THREE,
    families.NICE: THREE,
    families.NSF: THREE,
    families.PPCA: {**THREE, "num_latents": 2},
    families.PixelCNN: {**IMAGE, "num_layers": 2, "width": 8},
    families.PixelCNNPlusPlus: {**IMAGE, "num_blocks": 1, "width": 8},
    families.PixelSNAIL: {**IMAGE, "num_blocks": 1, "width": 8},
    families.PixelTransformer: {**IMAGE, "num_layers": 1, "width": 8},
    families.PlanarFlow: THREE,
    families.RBM: {"num_visible": 3, "num_hidden": 2},
    families.RadialFlow: THREE,
    families.RealNVP: {"size": 3},
    families.RecurrentNet: THREE,
    families.SemiSupervisedVAE: {**THREE, "num_latents": 2, "num_classes": 3},
    families.VAE: {**THREE, "num_latents": 2},
    families.VQVAE: {**THREE, "num_codes": 2, "codebook_size": 4},
    families.VariationalNoise: {"size": 3, "levels": 4},
    families.WaveNet: {"num_dims": 8},
    bayesnet.markov_chain: {"num_steps": 3},
    bayesnet.naive_bayes: {"num_classes": 2, "num_features": 2},
    # parts
    MLP: {"in_features": 2, "hidden": (3,), "out_features": 1},
    ResidualMLP: {"in_features": 2, "width": 3, "num_blocks": 1, "out_features": 1},
    MADENet: {**THREE, "hidden": (4,)},
    ConvEncoder: {"image_shape": (1, 8, 8), "channels": (2,), "out_features": 3},
    ConvDecoder: {"in_features": 3, "channels": (2,), "image_shape": (1, 8, 8)},
    likelihoods.Categorical: {"levels": 4},
    likelihoods.DiscretisedLogistic: {},
    likelihoods.Gaussian: {},
    likelihoods.MixtureDensity: {},
    priors.BernoulliPrior: {"num_latents": 2},
    priors.GaussianMixturePrior: {"num_latents": 2, "num_components": 3},
    priors.StandardNormal: {"num_latents": 2},
    guides.BernoulliPosterior: {"num_latents": 2},
    guides.DiagonalNormal: {"num_latents": 2},
    guides.FlowPosterior: {"num_latents": 2},
    guides.FullRankNormal: {"num_latents": 2},
    components.BernoulliComponents: {**THREE, "num_components": 2},
    components.GaussianComponents: {**THREE, "num_components": 2},
    tables.LinearGaussian: {},
    continuous.Continuous: THREE,
    layers.Coupling: THREE,
    layers.Elementwise: {"event_shape": (3,)},
    layers.MaskedAutoregressive: THREE,
    linear.ActNorm: {"event_shape": (3,)},
    linear.BatchNorm: {"event_shape": (3,)},
    linear.LULinear: {"event_shape": (3,)},
    planar.Planar: THREE,
    planar.Radial: THREE,
    planar.Sylvester: THREE,
    scalar.Affine: {},
    scalar.LogisticMixture: {},
    scalar.Spline: {},
    # objectives
    objectives.BetaTC: {"num_data": 4},
    objectives.CIWAE: {"num_particles": 3},
    objectives.ContrastiveDivergence: {},
    objectives.ELBO: {},
    objectives.FreeBits: {},
    objectives.GAN: {"critic": NET},
    objectives.IWELBO: {"num_particles": 3},
    objectives.MIWAE: {"num_bounds": 2, "num_particles": 3},
    objectives.NoiseContrastive: {"noise": torch.distributions.Normal(0.0, 1.0)},
    objectives.PersistentContrastiveDivergence: {},
    objectives.REINFORCE: {},
    objectives.RLOO: {},
    objectives.Renyi: {"alpha": 0.5},
    objectives.ReweightedWakeSleep: {"num_particles": 3},
    objectives.RunningMean: {},
    objectives.ScoreMatching: {},
    objectives.SemiAmortised: {"num_steps": 2, "learning_rate": 0.1},
    objectives.StraightThrough: {},
    objectives.VIMCO: {"num_particles": 3},
    objectives.linear_warmup: {"num_steps": 3},
    # estimators and their kernels
    **{
        estimator: {}
        for estimator in (
            evidence.AIS,
            evidence.AdaptiveImportanceSampling,
            evidence.BDMC,
            evidence.BridgeSampling,
            evidence.CUBO,
            evidence.ELBO,
            evidence.Exact,
            evidence.GridSampling,
            evidence.HarmonicMean,
            evidence.IWELBO,
            evidence.ImportanceSampling,
            evidence.JVI,
            evidence.Laplace,
            evidence.LearnedHarmonicMean,
            evidence.NestedSampling,
            evidence.PriorSampling,
            evidence.SMC,
            evidence.SUMO,
            evidence.SteppingStone,
            evidence.ThermodynamicIntegration,
            kernels.HMC,
            kernels.MALA,
            kernels.RandomWalk,
            kernels.ULA,
        )
    },
    # data
    densities.banana: {},
    densities.funnel: {},
    densities.gaussian_grid: {},
    densities.gaussian_ring: {},
    densities.pinwheel: {},
}
