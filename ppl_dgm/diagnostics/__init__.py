"""Diagnostics of the latents and draws of fitted programs.

They show what a program does with its latents, and whether its draws are like data.

Latents: code lengths and active units. Fits: the noise of gradients. Draws: two-sample tests with
p-values (`mmd_test` and others), counts of modes, precision and recall, memorisation, the Fréchet
distance.
"""

from ppl_dgm.diagnostics.codes import CodeLength, code_length
from ppl_dgm.diagnostics.gradients import GradientNoise, gradient_noise
from ppl_dgm.diagnostics.latent_use import LatentUse, latent_use
from ppl_dgm.diagnostics.mean_discrepancy import linear_mmd_test, mmd_test
from ppl_dgm.diagnostics.permutations import TwoSampleTest, permutation_test
from ppl_dgm.diagnostics.sample_quality import (
    Memorisation,
    ModeCounts,
    PrecisionRecall,
    class_counts,
    frechet_distance,
    memorisation,
    mode_counts,
    precision_recall,
)
from ppl_dgm.diagnostics.two_sample import classifier_test, energy_test, ks_test, mean_test

__all__ = [
    "CodeLength",
    "GradientNoise",
    "LatentUse",
    "Memorisation",
    "ModeCounts",
    "PrecisionRecall",
    "TwoSampleTest",
    "class_counts",
    "classifier_test",
    "code_length",
    "energy_test",
    "frechet_distance",
    "gradient_noise",
    "ks_test",
    "latent_use",
    "linear_mmd_test",
    "mean_test",
    "memorisation",
    "mmd_test",
    "mode_counts",
    "permutation_test",
    "precision_recall",
]
