"""Latent-variable families: VAEs and probabilistic PCA."""
