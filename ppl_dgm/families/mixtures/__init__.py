"""Mixtures, by maximum likelihood and Bayesian."""
