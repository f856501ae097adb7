"""Modules from a context to a distribution: likelihoods, priors, guides, components, tables."""
