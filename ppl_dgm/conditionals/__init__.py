"""Modules that map a context to a distribution.

They are likelihoods, priors, guides, components and tables.
"""
