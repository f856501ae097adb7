"""Plots of evidences, learning curves, images, latents and weights.

Every function takes numbers, tensors or programs, draws on the axes it is given or on a new figure,
and returns the axes.
"""

from ppl_dgm.reporting.plots.curves import plot_bounds, plot_curves
from ppl_dgm.reporting.plots.forest import ForestRow, plot_forest
from ppl_dgm.reporting.plots.images import plot_images
from ppl_dgm.reporting.plots.latents import plot_clusters, plot_codes, plot_latent_grid
from ppl_dgm.reporting.plots.weights import plot_weights

__all__ = [
    "ForestRow",
    "plot_bounds",
    "plot_clusters",
    "plot_codes",
    "plot_curves",
    "plot_forest",
    "plot_images",
    "plot_latent_grid",
    "plot_weights",
]
